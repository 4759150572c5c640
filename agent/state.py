"""What the agent keeps over restarts: its identity, its place in the assignments, and its pods. The port and the disk.

    <root>/identity          instance id and the number of starts
    <root>/cluster           incarnation, position, ranges and node table
    <root>/pods/<uid>        the pod's bytes and how far its life has come
    <root>/deaths/<name>     a death certificate that the master has not acknowledged yet
    <root>/healthy/<digest>  what a container ran with when it was last healthy

Each file is one line `shoal-state 1 <sha256 of the rest>`, one line of JSON, then bytes. It is written beside its
place, synced and renamed, so that a full disk or a crash leaves the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import total_ordering
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

log = logging.getLogger("shoal.agent.state")
MAGIC = b"shoal-state 1 "
DEATHS, HEALTHY = "deaths", "healthy"
SHELVES = (DEATHS, HEALTHY)
T = TypeVar("T")


class StateFault(Exception):
    """The state could not be written or read; the message says which file and why. Retryable."""


@total_ordering
@dataclass(frozen=True, slots=True)
class Position:
    """The place of an assignment: compared first by epoch, then by revision."""

    epoch: int = 0
    revision: int = 0

    def __lt__(self, other: Position) -> bool:
        return (self.epoch, self.revision) < (other.epoch, other.revision)

    def __str__(self) -> str:
        return f"{self.epoch}/{self.revision}"


@dataclass(frozen=True, slots=True)
class Identity:
    instance_id: str  # made once when the node joins
    agent_start: int  # grows with each start of the agent


@dataclass(frozen=True, slots=True)
class NodeRange:
    """A row of the node table."""

    address: str
    pod_cidr: str


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    incarnation: str = ""
    position: Position = Position()
    pod_cidr: str = ""
    cluster_cidr: str = ""
    nodes: Mapping[str, NodeRange] = field(default_factory=dict)


class ProbeTry(NamedTuple):
    """One try of a probe, as the disk keeps it."""

    probe: str
    at: float
    passed: bool
    message: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class RunNote:
    """What the agent has to remember of one run of a container, beside what the runtime knows of it."""

    ends: int = 0  # runs that ended in a row before this one
    hooked: bool = False  # its postStart hook went well
    started: bool = False  # its startup probe has passed
    ready: bool = False  # what its readiness probe said last
    changed: float = 0.0  # when that changed
    end_since: float = 0.0  # when the agent began to end it; 0: it did not
    grace: float = 0.0  # seconds it was given then
    reason: str = ""  # why it was ended, in one word
    message: str = ""
    said: str = ""  # the end of its log, when that is its termination message
    tries: Sequence[ProbeTry] = ()  # of the probe for which it was ended, oldest first
    buried: bool = False  # its death certificate is written
    stale: bool = False  # of a sandbox that is gone: what it did has to be done again


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One assigned pod. Times are CLOCK_REALTIME seconds."""

    uid: str
    pod: bytes
    start_time: float  # when this node first saw it
    stop_started: float = 0.0  # when its graceful end began; 0: it has not
    final: bytes = b""  # its PodStatus once every container has ended for good
    failed_at: float = 0.0  # when the node gave it up (its deadline passed); 0: it did not
    failed_reason: str = ""
    failed_message: str = ""
    failed_grace: float = 0.0  # seconds its containers were given then
    notes: Mapping[str, RunNote] = field(default_factory=dict)  # by container/attempt: the last two runs of each


class State(Protocol):
    """Every save is atomic. Any call may raise StateFault; what was there before is still there then."""

    async def begin(self, fresh_id: str, now: float) -> Identity:
        """Counts a start of the agent; `fresh_id` becomes the identity of a node that has none."""
        ...

    async def cluster(self) -> ClusterRecord: ...
    async def save_cluster(self, record: ClusterRecord) -> None: ...
    async def pods(self) -> list[PodRecord]: ...
    async def save_pod(self, record: PodRecord) -> None: ...
    async def remove_pod(self, uid: str) -> None: ...
    async def notes(self, shelf: str) -> dict[str, bytes]:
        """What lies on a shelf, by name, what was put there first first."""
        ...

    async def put_note(self, shelf: str, name: str, body: bytes, *, sure: bool = True) -> None:
        """`sure`: also when the power goes at once."""
        ...

    async def remove_note(self, shelf: str, name: str) -> None: ...


def next_identity(old: Identity | None, fresh_id: str, now: float) -> Identity:
    """The clock is a floor, so that the number grows even when the disk was too full to keep the last one."""
    start = max((old.agent_start if old else 0) + 1, int(now))
    return Identity(old.instance_id if old else fresh_id, start)


class MemoryState:
    """For unit tests and simulation: the object outlives the agent as a disk would. `full` makes every save fail."""

    def __init__(self) -> None:
        self.full = False
        self._identity: Identity | None = None
        self._cluster = ClusterRecord()
        self._pods: dict[str, PodRecord] = {}
        self.shelves: dict[str, dict[str, bytes]] = {shelf: {} for shelf in SHELVES}

    async def begin(self, fresh_id: str, now: float) -> Identity:
        self._identity = next_identity(self._identity, fresh_id, now)
        return self._identity

    async def cluster(self) -> ClusterRecord:
        return self._cluster

    async def save_cluster(self, record: ClusterRecord) -> None:
        self._check()
        self._cluster = record

    async def pods(self) -> list[PodRecord]:
        return list(self._pods.values())

    async def save_pod(self, record: PodRecord) -> None:
        self._check()
        self._pods[record.uid] = record

    async def remove_pod(self, uid: str) -> None:
        self._pods.pop(uid, None)

    async def notes(self, shelf: str) -> dict[str, bytes]:
        return dict(self.shelves[shelf])

    async def put_note(self, shelf: str, name: str, body: bytes, *, sure: bool = True) -> None:
        self._check()
        self.shelves[shelf].pop(name, None)
        self.shelves[shelf][name] = body

    async def remove_note(self, shelf: str, name: str) -> None:
        self.shelves[shelf].pop(name, None)

    def _check(self) -> None:
        if self.full:
            raise StateFault("the agent's state could not be saved: no space left")


class DiskState:
    """The files, written in a thread so that a slow disk does not hold the agent."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pods = root / "pods"

    async def begin(self, fresh_id: str, now: float) -> Identity:
        return await asyncio.to_thread(self._begin, fresh_id, now)

    def _begin(self, fresh_id: str, now: float) -> Identity:
        try:
            for folder in (self._pods, *(self._root / shelf for shelf in SHELVES)):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for half in (*self._root.glob(".*.new"), *self._root.glob("*/.*.new")):
                half.unlink(missing_ok=True)
        except OSError as fault:
            raise StateFault(f"the data folder {self._root} cannot be used: {fault}") from fault
        identity = next_identity(self._read(self._root / "identity", _identity_of, None), fresh_id, now)
        try:
            self._write(self._root / "identity", asdict(identity))
        except StateFault as fault:
            if not (self._root / "identity").exists():
                raise  # without a kept identity the node would be another one after its next start
            log.error("%s; going on with the identity that is there", fault)
        return identity

    async def cluster(self) -> ClusterRecord:
        return await asyncio.to_thread(self._read, self._root / "cluster", _cluster_of, ClusterRecord())

    async def save_cluster(self, record: ClusterRecord) -> None:
        await asyncio.to_thread(self._write, self._root / "cluster", asdict(record))

    async def pods(self) -> list[PodRecord]:
        return await asyncio.to_thread(self._read_pods)

    def _read_pods(self) -> list[PodRecord]:
        try:
            paths = sorted(path for path in self._pods.iterdir() if ".corrupt" not in path.name)
        except OSError as fault:
            raise StateFault(f"{self._pods} cannot be listed: {fault}") from fault
        records = [self._read(path, _pod_of, None) for path in paths]
        return [record for record in records if record is not None]

    async def save_pod(self, record: PodRecord) -> None:
        await asyncio.to_thread(self._save_pod, record)

    def _save_pod(self, record: PodRecord) -> None:
        head = {**asdict(record), "final": record.final.hex()}
        del head["pod"]
        self._write(self._pod_path(record.uid), head, record.pod)

    async def remove_pod(self, uid: str) -> None:
        await asyncio.to_thread(self._remove_pod, uid)

    def _remove_pod(self, uid: str) -> None:
        try:
            self._pod_path(uid).unlink(missing_ok=True)
            _sync_folder(self._pods)
        except OSError as fault:
            raise StateFault(f"{self._pod_path(uid)} cannot be deleted: {fault}") from fault

    async def notes(self, shelf: str) -> dict[str, bytes]:
        return await asyncio.to_thread(self._notes, shelf)

    def _notes(self, shelf: str) -> dict[str, bytes]:
        folder = self._root / shelf
        try:
            paths = [path for path in folder.iterdir() if ".corrupt" not in path.name]
            paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        except OSError as fault:
            raise StateFault(f"{folder} cannot be listed: {fault}") from fault
        found = {path.name: self._read(path, lambda _, body: body, None) for path in paths}
        return {name: body for name, body in found.items() if body is not None}

    async def put_note(self, shelf: str, name: str, body: bytes, *, sure: bool = True) -> None:
        await asyncio.to_thread(self._write, self._root / shelf / file_name(name), {}, body, sure)

    async def remove_note(self, shelf: str, name: str) -> None:
        await asyncio.to_thread(self._remove_note, self._root / shelf / file_name(name))

    @staticmethod
    def _remove_note(path: Path) -> None:
        """One that comes back when the power goes is only told again."""
        try:
            path.unlink(missing_ok=True)
        except OSError as fault:
            raise StateFault(f"{path} cannot be deleted: {fault}") from fault

    def _pod_path(self, uid: str) -> Path:
        return self._pods / file_name(uid)

    def _write(self, path: Path, head: Mapping[str, Any], body: bytes = b"", sure: bool = True) -> None:
        half = path.with_name(f".{path.name}.new")
        rest = json.dumps(head, separators=(",", ":")).encode() + b"\n" + body
        try:
            with open(half, "wb", opener=_private) as file:
                file.write(MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
                file.flush()
                if sure:
                    os.fsync(file.fileno())
            half.replace(path)
            if sure:
                _sync_folder(path.parent)
        except OSError as fault:
            half.unlink(missing_ok=True)
            raise StateFault(f"{path} could not be saved: {fault.strerror or fault}") from fault

    def _read(self, path: Path, build: Callable[[dict[str, Any], bytes], T], missing: T) -> T:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return missing
        except OSError as fault:
            raise StateFault(f"{path} cannot be read: {fault.strerror or fault}") from fault
        try:
            first, _, rest = raw.partition(b"\n")
            if first != MAGIC + hashlib.sha256(rest).hexdigest().encode():
                raise ValueError("its checksum does not match: it was cut short or changed")
            head, _, body = rest.partition(b"\n")
            return build(json.loads(head), body)
        except (ValueError, TypeError, KeyError) as fault:
            aside = path.with_name(f"{path.name}.corrupt")
            path.replace(aside)
            log.error("%s is damaged (%s); it was set aside as %s and is treated as missing", path, fault, aside)
            return missing


def _identity_of(head: dict[str, Any], _: bytes) -> Identity | None:
    return Identity(**head)


def _cluster_of(head: dict[str, Any], _: bytes) -> ClusterRecord:
    nodes = {name: NodeRange(**row) for name, row in head["nodes"].items()}
    return ClusterRecord(**{**head, "position": Position(**head["position"]), "nodes": nodes})


def _pod_of(head: dict[str, Any], body: bytes) -> PodRecord | None:
    notes = {run: _note_of(note) for run, note in head.get("notes", {}).items()}
    return PodRecord(**{**head, "pod": body, "final": bytes.fromhex(head["final"]), "notes": notes})


def _note_of(note: dict[str, Any]) -> RunNote:
    return RunNote(**{**note, "tries": tuple(ProbeTry(*one) for one in note.get("tries", ()))})


def file_name(name: str) -> str:
    """Raises StateFault for a name that no file can have, or that means something else."""
    if not name or name.startswith(".") or "/" in name or "\0" in name or ".corrupt" in name:
        raise StateFault(f"{name!r} cannot be a file's name, as a pod's uid must")
    return name


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
