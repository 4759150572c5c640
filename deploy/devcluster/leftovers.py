"""What Shoal could leave behind on a machine, as a listing that can be compared.

Tests and `make down` use it: what was there before is there after, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from shoal.deploy.devcluster.plan import link_hash

MARK = "SHOAL_TEST_RUN"  # in the environment of every process that a test starts
NAMED = "/run/netns"
SETTLE_SECONDS = 10.0  # processes and namespaces go a moment after their last user


@dataclass(frozen=True)
class Listing:
    processes: frozenset[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    tables: frozenset[str]

    def beyond(self, before: Listing) -> dict[str, list[str]]:
        """What is here and was not there, by kind."""
        extra = {f.name: sorted(getattr(self, f.name) - getattr(before, f.name)) for f in fields(self)}
        return {kind: items for kind, items in extra.items() if items}


def _ours(pid: str, mark: bytes | None) -> str | None:
    """A line for a process that carries the mark, or without a mark for one that runs Shoal; None for any other."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
    if state == "Z":
        return None  # ended; only its parent can take it from the table
    runs_shoal = "shoal" in command.split(" ")[0] or "-m shoal." in command
    if runs_shoal if mark is None else mark in environ.split(b"\0"):
        return f"{pid} {command[:160]}"
    return None


def _processes() -> Iterator[str]:
    own = {str(os.getpid()), str(os.getppid())}
    mark = f"{MARK}={os.environ[MARK]}".encode() if MARK in os.environ else None
    for name in os.listdir("/proc"):
        if name.isdigit() and name not in own and (line := _ours(name, mark)):
            yield line


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        root, point = line.split(" ")[3:5]
        if point != NAMED:  # ip-netns(8) mounts its folder onto itself at its first use, and leaves it so
            yield f"{root} {point}"


def _cgroups() -> Iterator[str]:
    for root in Path("/sys/fs/cgroup").iterdir():
        if root.is_dir():
            yield from (str(p) for p in [*root.glob("shoal*"), *root.glob("shoal*/*")] if p.is_dir())


def _links() -> Iterator[str]:
    yield from os.listdir("/sys/class/net")


def _tables() -> Iterator[str]:
    try:
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return
    yield from done.stdout.splitlines()


def listing() -> Listing:
    """What is on the machine now, of the kinds that Shoal makes."""
    named = Path(NAMED)
    return Listing(
        processes=frozenset(_processes()),
        mounts=frozenset(_mounts()),
        namespaces=frozenset(p.name for p in named.iterdir()) if named.is_dir() else frozenset(),
        cgroups=frozenset(_cgroups()),
        links=frozenset(_links()),
        tables=frozenset(_tables()),
    )


def wait_clean(before: Listing, seconds: float = SETTLE_SECONDS) -> dict[str, list[str]]:
    """What is still here beyond `before` once it no longer shrinks; {} is clean."""
    end = time.monotonic() + seconds
    while (extra := listing().beyond(before)) and time.monotonic() < end:
        time.sleep(0.1)
    return extra


def without_clusters(extra: dict[str, list[str]], run_root: Path) -> dict[str, list[str]]:
    """What is left of a listing without what belongs to development clusters that run: they came meanwhile."""
    names = [p.name for p in run_root.iterdir() if p.is_dir()] if run_root.is_dir() else []
    marks = [mark for name in names for mark in (name, link_hash(name))]
    kept = {kind: [item for item in items if not any(mark in item for mark in marks)] for kind, items in extra.items()}
    return {kind: items for kind, items in kept.items() if items}


def save(found: Listing, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({f.name: sorted(getattr(found, f.name)) for f in fields(found)}, indent=1) + "\n")


def load(path: Path) -> Listing | None:
    """What `save` wrote; None without it."""
    try:
        raw = json.loads(path.read_text())
        return Listing(**{f.name: frozenset(raw[f.name]) for f in fields(Listing)})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
