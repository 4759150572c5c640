"""The cgroup subtrees of development nodes: shoal-<cluster>/<node>/{system,pods} in every hierarchy that is mounted.

The host's own hierarchies are never reconfigured: folders with our prefix come, and go when the cluster goes.
"""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
V1_CONTROLLERS = {"cpu", "cpuacct", "memory", "pids", "cpuset", "blkio", "devices", "freezer"}
REMOVE_SECONDS = 10.0


def hierarchies(mountinfo: str) -> dict[Path, str]:
    """Mount point -> "v2" or the v1 controllers, from the text of /proc/self/mountinfo (proc(5))."""
    found: dict[Path, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ")[:3]
        point = Path(before.split(" ")[4])
        if kind == "cgroup2":
            found[point] = "v2"
        elif kind == "cgroup" and (names := V1_CONTROLLERS & set(options.split(","))):
            found[point] = ",".join(sorted(names))
    return found


def here() -> dict[Path, str]:
    return hierarchies(MOUNTINFO.read_text())


def make(path: str, memory_bytes: int, pids: int = 0) -> None:
    """Makes the node's subtree and limits its memory and processes; 0: no limit. Raises OSError."""
    for point, kind in here().items():
        node = point / path
        (node / "system").mkdir(parents=True, exist_ok=True)
        (node / "pods").mkdir(exist_ok=True)
        if kind == "v2":
            _delegate(point, path)
        if "cpuset" in kind.split(","):
            _fill_cpuset(point, path)
        for name in ("memory.limit_in_bytes", "memory.max"):
            if memory_bytes and (node / name).exists():
                (node / name).write_text(str(memory_bytes))
        if pids and (node / "pids.max").exists():
            (node / "pids.max").write_text(str(pids))


def _delegate(point: Path, path: str) -> None:
    """cgroup v2 hands controllers down folder by folder; where v1 holds them there is nothing to hand down."""
    folder = point
    for part in ("", *Path(path).parts):
        folder = folder / part
        control = folder / "cgroup.subtree_control"
        wanted = set((folder / "cgroup.controllers").read_text().split()) & {"cpu", "memory", "pids", "cpuset", "io"}
        missing = wanted - set(control.read_text().split())
        if missing and folder != point:
            control.write_text(" ".join(f"+{name}" for name in sorted(missing)))


def _fill_cpuset(point: Path, path: str) -> None:
    """A v1 cpuset starts empty, and nothing can join an empty one."""
    folder = point
    for part in (*Path(path).parts, "system"):
        parent, folder = folder, folder / part
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (folder / name).read_text().strip():
                (folder / name).write_text((parent / name).read_text())
    for name in ("cpuset.cpus", "cpuset.mems"):
        (folder.parent / "pods" / name).write_text((folder.parent / name).read_text())


def procs_files(path: str) -> list[Path]:
    """Where a process joins the node's `system` group: one file per hierarchy."""
    return [point / path / "system" / "cgroup.procs" for point in here()]


def remove(path: str) -> list[str]:
    """Takes a subtree away everywhere; its processes must be gone. Returns what could not be removed."""
    end = time.monotonic() + REMOVE_SECONDS
    left: list[str] = []
    for point in here():
        root = point / path
        while root.exists():
            _remove_tree(root)
            if root.exists():
                if time.monotonic() > end:
                    left.append(str(root))
                    break
                time.sleep(0.05)
    return left


def _remove_tree(root: Path) -> None:
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()
    try:
        root.rmdir()
    except OSError as fault:
        if fault.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
            raise
