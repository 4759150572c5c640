"""The nodes as the scheduler sees them: rows in the order of names, and what their labels, taints and images say.

A topology key's column gives each node its domain; masks for label rules are read from columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.master.scheduler.classes import AMOUNT_LIMIT, amounts
from shoal.master.scheduler.terms import NAME_FIELD, NodeTerm, Rule
from shoal.master.volumes import Place
from shoal.proto.v1 import objects_pb2 as o

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

MASKS_LIMIT = 1024  # label rules whose node masks are kept


class TaintKey(NamedTuple):
    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What placement needs to know of a node."""

    name: str
    alloc: dict[str, int]
    labels: dict[str, str]
    taints: frozenset[TaintKey]
    ready: bool
    images: dict[str, int] = field(default_factory=dict, compare=False)  # bytes by name; only scores look at them


def facts_of(node: o.Node) -> NodeFacts:
    """A node's own word is bounded: what one claims must not make sums overflow in everybody's scores."""
    status = node.status
    alloc = amounts(status.allocatable) if status.allocatable else amounts(status.capacity)
    is_ready = any(c.type == "Ready" and c.status == "True" for c in status.conditions)
    closing = node.metadata.HasField("deletionTimestamp")
    taints = frozenset(TaintKey(t.key, t.value, t.effect) for t in node.spec.taints)
    images = {name: max(0, min(AMOUNT_LIMIT, one.sizeBytes)) for one in status.images for name in one.names}
    return NodeFacts(node.metadata.name, alloc, dict(node.metadata.labels), taints, is_ready and not closing, images)


@dataclass(frozen=True, slots=True)
class Domains:
    """A topology key's domains, in the order of their names. `slots` is int64[N]: each node's domain, or `size` for a
    node that lacks the key."""

    names: list[str]
    slots: Ints
    has: Bools  # the nodes with the key
    single: bool  # no two nodes share a domain

    @property
    def size(self) -> int:
        return len(self.names)

    @staticmethod
    def of(values: list[str | None]) -> Domains:
        names = sorted({value for value in values if value is not None})
        code: dict[str | None, int] = {value: index for index, value in enumerate(names)}
        slots = np.fromiter((code.get(value, len(names)) for value in values), dtype=np.int64, count=len(values))
        has = slots < len(names)
        return Domains(names, slots, has, int(has.sum()) == len(names))

    def hit(self, rows: Ints) -> Bools:
        """bool[size + 1]: the domains of these rows; never that of nodes without the key."""
        found = np.zeros(self.size + 1, dtype=np.bool_)
        found[self.slots[rows]] = True
        found[self.size] = False
        return found


class Nodes:
    """The facts with their tables; owned by a Snapshot."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.row: dict[str, int] = {}
        self.epoch = 0  # grows with every change of a node's facts
        self.images: dict[str, dict[str, int]] = {}  # image -> node -> bytes
        self.images_version = 0
        self.facts: dict[str, NodeFacts] = {}
        self._columns: dict[str, Domains] = {}
        self._masks: dict[Rule, Bools] = {}
        self._taints: dict[TaintKey, Bools] | None = None
        self._places: list[Place] | None = None

    def clone(self) -> Nodes:
        """Tables are replaced, never changed in place, save the images."""
        made = Nodes()
        made.names, made.row, made.epoch = self.names, self.row, self.epoch
        made.images = {image: dict(nodes) for image, nodes in self.images.items()}
        made.images_version, made.facts = self.images_version, dict(self.facts)
        made._columns, made._masks = dict(self._columns), dict(self._masks)
        made._taints, made._places = self._taints, self._places
        return made

    # ---- changes ----
    def take(self, changed: Mapping[str, NodeFacts | None]) -> tuple[dict[str, NodeFacts | None], bool]:
        """What has really changed, save images; and whether rows came or went: then `names` and `row` are new."""
        real: dict[str, NodeFacts | None] = {}
        reshaped = relabelled = False
        for name, facts in changed.items():
            old = self.facts.get(name)
            self._take_images(name, old.images if old else {}, facts.images if facts else {})
            if facts != old:
                real[name] = facts
                reshaped = reshaped or facts is None or old is None
                relabelled = relabelled or (facts is not None and old is not None and facts.labels != old.labels)
            if facts is not None:
                self.facts[name] = facts
            elif old is not None:
                del self.facts[name]
        if real:
            self.epoch += 1
            self._taints = None
        if reshaped or relabelled:
            self._columns, self._masks, self._places = {}, {}, None
        if reshaped:
            self.names = sorted(self.facts)
            self.row = {name: index for index, name in enumerate(self.names)}
        return real, reshaped

    def _take_images(self, node: str, old: Mapping[str, int], new: Mapping[str, int]) -> None:
        if old == new:
            return
        self.images_version += 1
        for image in old.keys() - new.keys():
            on = self.images[image]
            on.pop(node, None)
            if not on:
                del self.images[image]
        for image, size in new.items():
            self.images.setdefault(image, {})[node] = size

    # ---- tables ----
    def in_order(self) -> list[NodeFacts]:
        return [self.facts[name] for name in self.names]

    def places(self) -> list[Place]:
        """The nodes as volumes see them."""
        if self._places is None:
            self._places = [Place(name, self.facts[name].labels) for name in self.names]
        return self._places

    def domains(self, key: str) -> Domains:
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = Domains.of([self.facts[name].labels.get(key) for name in self.names])
        return found

    def taint_rows(self) -> dict[TaintKey, Bools]:
        """For each distinct taint the nodes that carry it."""
        if self._taints is None:
            self._taints = {}
            for index, facts in enumerate(self.in_order()):
                for taint in facts.taints:
                    row = self._taints.get(taint)
                    if row is None:
                        row = self._taints[taint] = np.zeros(len(self.names), dtype=np.bool_)
                    row[index] = True
        return self._taints

    def label_mask(self, rule: Rule) -> Bools:
        """The nodes whose labels the rule holds for; not to be changed."""
        found = self._masks.get(rule)
        if found is None:
            if len(self._masks) >= MASKS_LIMIT:
                self._masks.clear()
            found = self._masks[rule] = self._mask(rule)
        return found

    def _mask(self, rule: Rule) -> Bools:
        column = self.domains(rule.key)
        verdict = [rule.holds({rule.key: value}) for value in column.names]
        result: Bools = np.array([*verdict, rule.holds({})], dtype=np.bool_)[column.slots]
        return result

    def term_mask(self, term: NodeTerm) -> Bools:
        """The nodes that a node affinity's term holds for."""
        if not term.labels and not term.fields:
            return np.zeros(len(self.names), dtype=np.bool_)
        result = np.ones(len(self.names), dtype=np.bool_)
        for rule in term.labels:
            result &= self.label_mask(rule)
        for rule in term.fields:
            result &= self._field_mask(rule)
        return result

    def _field_mask(self, rule: Rule) -> Bools:
        held = (rule.holds({NAME_FIELD: name}) for name in self.names)
        if rule.operator != "In" or rule.key != NAME_FIELD:
            return np.fromiter(held, dtype=np.bool_, count=len(self.names))
        result = np.zeros(len(self.names), dtype=np.bool_)
        result[rows_of(self.row, rule.values)] = True
        return result


def rows_of(row: Mapping[str, int], names: Iterable[str]) -> Ints:
    """int64: the rows of those nodes that there are."""
    return np.array([row[name] for name in names if name in row], dtype=np.int64)
