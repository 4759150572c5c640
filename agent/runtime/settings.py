"""What the spawner is told by its configuration file (JSON), and where everything of a node's runtime lies.

<run>/spawner.sock, spawner.lock, spawner.json, spawner.log   the spawner's door, lock, settings, faults
<run>/pods/<uid>.sock, <uid>.lock                             a supervisor's door; the lock holds its pid
<run>/sandboxes/<uid>/{net,ipc,uts}                           the pods' namespaces
<run>/sandboxes/<uid>/{shm,pid,holder}                        their /dev/shm; a shared pid namespace, its first process
<run>/private/<uid>/, <data>/pods/..., <data>/trash/          see records.py
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields

from shoal.agent.runtime import records


class SettingsError(Exception):
    """The configuration cannot be used; the message names file, field and what is expected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`boot_id` "" is the machine's own. `fault_points`, for tests only: stage -> a file; when the file is there, the
    process that reaches the stage removes it and kills itself."""

    run: str
    data: str
    cgroup_root: str  # relative to the hierarchies' roots, such as shoal-dev/n1
    boot_id: str = ""
    fault_points: dict[str, str] = field(default_factory=dict)

    def checked(self) -> Settings:
        """Itself. Raises SettingsError."""
        for name in ("run", "data"):
            value = getattr(self, name)
            if not isinstance(value, str) or not os.path.isabs(value) or "\0" in value:
                raise SettingsError(f"{name}: {value!r} is not an absolute path")
        root = self.cgroup_root
        parts = root.split("/") if isinstance(root, str) else [""]
        if not parts[0] or ".." in parts or not any(part.startswith("shoal") for part in parts):
            raise SettingsError(f"cgroup_root: {root!r} must be a relative path with a part that begins with 'shoal'")
        if not isinstance(self.boot_id, str) or not isinstance(self.fault_points, dict):
            raise SettingsError("boot_id must be text and fault_points an object")
        return self

    def current_boot(self) -> str:
        return self.boot_id or records.boot_id()

    def socket(self, pod: str) -> str:
        return f"{self.run}/pods/{pod}.sock"

    def lock(self, pod: str) -> str:
        return f"{self.run}/pods/{pod}.lock"

    def sandbox(self, pod: str) -> str:
        return f"{self.run}/sandboxes/{pod}"

    def make_folders(self) -> None:
        """Makes the run and data folders, closed to other users."""
        for folder in (self.run, f"{self.run}/pods", f"{self.run}/sandboxes", self.data, f"{self.data}/pods"):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def load(path: str) -> Settings:
    """Reads a configuration file. Raises SettingsError."""
    try:
        with open(path) as file:
            content = json.load(file)
    except OSError as fault:
        raise SettingsError(f"{path}: {fault.strerror}") from fault
    except ValueError as fault:
        raise SettingsError(f"{path} is not JSON: {fault}") from fault
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold one JSON object")
    known = {item.name for item in fields(Settings)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise SettingsError(f"{path}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    missing = sorted({"run", "data", "cgroup_root"} - set(content))
    if missing:
        raise SettingsError(f"{path}: the field {missing[0]!r} is missing")
    try:
        return Settings(**content).checked()
    except SettingsError as fault:
        raise SettingsError(f"{path}: {fault}") from fault
