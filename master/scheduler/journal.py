"""The journal of decisions: what each was made from, so that it can be made again.

A file is a list of lines, each `CRC32 JSON`. It begins with the head and the whole state, so that it needs no other;
then come changes of the snapshot and plans, in the order in which they happened. Nothing in it is secret: it has
names, labels, amounts and terms, never commands, environments or data.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from shoal.master.model import Key, Object
from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Plan, Waiting
from shoal.master.scheduler.gpus import Shape
from shoal.master.scheduler.groups import Budget, Group
from shoal.master.scheduler.nodes import NodeFacts
from shoal.master.scheduler.plain import Json, encode
from shoal.master.scheduler.profiles import Profile
from shoal.master.scheduler.snapshot import Hold, Snapshot

FORMAT = 1
LAST_APPLIED = "shoal.dev/last-applied"


# ---- entries: what happened, as the scheduler has it ----
class Held(NamedTuple):
    """A pod holds this, whatever it held before; None: nothing."""

    uid: str
    hold: Hold | None


class NodeIs(NamedTuple):
    name: str
    facts: NodeFacts | None


class PolicyIs(NamedTuple):
    """A budget or a pod group; None: it is gone."""

    kind: str
    namespace: str
    name: str
    policy: Budget | Group | None


class SpaceIs(NamedTuple):
    """The labels of a namespace."""

    name: str
    labels: Mapping[str, str]


class VolumeIs(NamedTuple):
    """A claim, a volume or a storage class."""

    key: Key
    message: Object | None


class Planned(NamedTuple):
    """`devices` of the bindings, by uid, where there are any."""

    revision: int
    window: int
    at: float
    queue: Sequence[Waiting]
    plan: Plan
    devices: Mapping[str, tuple[int, ...]]


class State(NamedTuple):
    """Everything, at one moment: a file begins with it."""

    at: float
    revision: int
    profiles: Mapping[str, Profile]
    nodes: Sequence[NodeIs]
    policies: Sequence[PolicyIs]
    spaces: Sequence[SpaceIs]
    volumes: Sequence[VolumeIs]
    holds: Sequence[Held]
    typical: Mapping[Shape, int]  # what the typical pods were made from


Entry: TypeAlias = Held | NodeIs | PolicyIs | SpaceIs | VolumeIs | Planned


def state_of(snapshot: Snapshot, profiles: Mapping[str, Profile], at: float, revision: int) -> State:
    """References only: it is quick, and stays as it is while the snapshot goes on."""
    budgets = [PolicyIs("PodDisruptionBudget", *name, found) for name, found in snapshot.budgets.items()]
    groups = [PolicyIs("PodGroup", *name, found) for name, found in snapshot.groups.items()]
    volumes = snapshot.volumes
    tables: tuple[tuple[str, Mapping[str, Object]], ...] = (
        ("StorageClass", volumes.classes),
        ("PersistentVolume", volumes.volumes),
        ("PersistentVolumeClaim", volumes.claims),
    )
    return State(
        at,
        revision,
        dict(profiles),
        [NodeIs(facts.name, facts) for facts in snapshot.facts()],
        [*budgets, *groups],
        [SpaceIs(name, labels) for name, labels in snapshot.counts.spaces.items()],
        [VolumeIs(_volume_key(kind, name), found) for kind, table in tables for name, found in table.items()],
        [Held(uid, hold) for uid, hold in snapshot.all_holds().items()],
        snapshot.workload.made_from(),
    )


def _volume_key(kind: str, name: str) -> Key:
    space, slash, short = name.partition("/")
    return Key(kind, space, short) if slash else Key(kind, "", name)


# ---- lines ----
@dataclass(slots=True)
class Writer:
    """Makes the lines of one file; classes of pods are written once and then named by number."""

    version: str
    _classes: dict[PodClass, int] = field(default_factory=dict)

    def begin(self, state: State) -> Iterator[bytes]:
        self._classes.clear()
        profiles = {name: encode(profile) for name, profile in state.profiles.items()}
        typical = [[encode(shape), number] for shape, number in state.typical.items()]
        yield line({"t": "head", "format": FORMAT, "version": self.version, "at": state.at, "profiles": profiles})
        parts: tuple[Sequence[Entry], ...] = (state.nodes, state.policies, state.spaces, state.volumes, state.holds)
        for part in parts:
            for entry in part:
                yield from self.lines(entry)
        yield line({"t": "begin", "revision": state.revision, "typical": typical})

    def lines(self, entry: Entry) -> Iterator[bytes]:
        """Usually one; before it the classes that it names for the first time."""
        if isinstance(entry, Held):
            yield from self._held(entry)
        elif isinstance(entry, NodeIs):
            yield line({"t": "node", "name": entry.name, "facts": encode(entry.facts)})
        elif isinstance(entry, PolicyIs):
            said = {"kind": entry.kind, "namespace": entry.namespace, "name": entry.name}
            yield line({"t": "policy", **said, "policy": encode(entry.policy)})
        elif isinstance(entry, SpaceIs):
            yield line({"t": "space", "name": entry.name, "labels": dict(entry.labels)})
        elif isinstance(entry, VolumeIs):
            yield line({"t": "volume", "key": list(entry.key), "body": _body(entry.message)})
        else:
            yield from self._planned(entry)

    def _class(self, pods: PodClass) -> Iterator[bytes]:
        if pods not in self._classes:
            number = self._classes[pods] = len(self._classes)
            yield line({"t": "class", "number": number, "class": encode(pods)})

    def _held(self, entry: Held) -> Iterator[bytes]:
        hold = entry.hold
        if hold is None:
            yield line({"t": "free", "uid": entry.uid})
            return
        yield from self._class(hold.pods)
        key = None if hold.key is None else list(hold.key)
        flags = [int(hold.leaving), int(hold.nominated)]
        yield line(
            {
                "t": "hold", "uid": entry.uid, "node": hold.node, "class": self._classes[hold.pods], "key": key,
                "devices": list(hold.devices), "flags": flags, "arrival": list(hold.arrival),
            }
        )  # fmt: skip

    def _planned(self, entry: Planned) -> Iterator[bytes]:
        for one in entry.queue:
            yield from self._class(one.pods)
        queue = [[one.uid, *one.key, self._classes[one.pods], *one.arrival] for one in entry.queue]
        said = {"revision": entry.revision, "window": entry.window, "at": entry.at}
        yield line({"t": "plan", **said, "queue": queue, **outcome(entry.queue, entry.plan, entry.devices)})


def outcome(queue: Sequence[Waiting], plan: Plan, devices: Mapping[str, Sequence[int]]) -> dict[str, Json]:
    """What was decided, by places in the queue: `bound` [place, node, devices], `refused` [place, story], the stories,
    and `preempting` [place, node, breaks, victims]."""
    at = {one.uid: index for index, one in enumerate(queue)}
    stories: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
    refused = []
    for waiting, why in plan.refusals:
        story = stories.setdefault((why.message, why.counts), len(stories))
        refused.append([at[waiting.uid], story])
    bound = [[at[one.waiting.uid], one.node, list(devices.get(one.waiting.uid, ()))] for one in plan.bindings]
    preempting = [
        [at[one.waiting.uid], one.node, one.breaks, [victim.uid for victim in one.victims]] for one in plan.preemptions
    ]
    told = [[message, [list(pair) for pair in counts]] for message, counts in stories]
    return {"bound": bound, "refused": refused, "stories": told, "preempting": preempting}


def _body(message: Object | None) -> str | None:
    """Without what was applied last: the rest of these objects holds no secrets."""
    if message is None:
        return None
    if LAST_APPLIED in message.metadata.annotations:
        copy = type(message).FromString(message.SerializeToString())
        del copy.metadata.annotations[LAST_APPLIED]
        message = copy
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


def line(said: Mapping[str, Json]) -> bytes:
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


class JournalError(ValueError):
    """The file is not a journal of this version, or is damaged; the message says where."""


def read(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Json]]]:
    """(line number, record). A last line without its end was being written: it is left out. Raises JournalError."""
    for number, raw in enumerate(lines, start=1):
        if not raw.endswith(b"\n"):
            return
        crc, _, text = raw[:-1].partition(b" ")
        try:
            whole = int(crc, 16) == zlib.crc32(text)
        except ValueError:
            raise JournalError(f"line {number}: is not a line of a decision log") from None
        if not whole:
            raise JournalError(f"line {number}: is damaged (its checksum does not match)")
        try:
            yield number, json.loads(text)
        except ValueError:
            raise JournalError(f"line {number}: is not JSON") from None
