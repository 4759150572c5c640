"""Carries bindings out through the store, so that none is lost and none doubled."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence

from shoal.master.controllers.base import seconds
from shoal.master.model import Change, Fault, NotLeader, Record, Unavailable
from shoal.master.scheduler.core import Binding
from shoal.master.scheduler.snapshot import Hold
from shoal.master.scheduling.books import Books
from shoal.master.scheduling.changes import bind, bound_condition, select_node
from shoal.master.scheduling.meter import Meter
from shoal.master.stores import StoreFace
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.scheduler")

RESEND_SECONDS = 1.0


class Settled:
    """What became of bindings: `bound`; `failed` are to be tried again; `unsure` have an unknown outcome."""

    def __init__(self) -> None:
        self.bound: list[Binding] = []
        self.failed: list[Binding] = []
        self.freed: list[Hold] = []  # what is free again: that of the failed, and of those that somebody else bound


class Binder:
    """Keeps the bindings whose outcome is not known: they hold their room, else it could be given away twice."""

    def __init__(
        self, store: StoreFace, books: Books, now: Callable[[], float], rng: random.Random, meter: Meter
    ) -> None:
        self.store, self.books, self.now, self.rng, self.meter = store, books, now, rng, meter
        self.unsure: list[Binding] = []

    async def write(self, bindings: Sequence[Binding], others: Sequence[Change]) -> tuple[Settled, Sequence[object]]:
        """Writes bindings and other changes in one call; what became of the bindings, and the others' results.
        Raises Unavailable when nothing is known: the bindings are `unsure` then. Raises NotLeader."""
        condition = bound_condition(self.now())
        nodes = self._claims_nodes(bindings)
        changes = [*nodes, *(bind(binding, self._devices(binding), condition) for binding in bindings), *others]
        try:
            results = (await self.store.write(changes))[len(nodes) :]
        except NotLeader:
            self._undo(bindings)
            raise
        except Unavailable as fault:
            if bindings:
                log.warning("the store does not answer (%s); %d bindings are sent again", fault, len(bindings))
            self.unsure = list(bindings)
            raise
        return self._settle(bindings, results), results[len(bindings) :]

    async def resend(self) -> Settled:
        """The edit of a pod that was bound after all changes nothing. Nothing else is placed before they are
        settled."""
        unsure, self.unsure = self.unsure, []
        settled = Settled()
        try:
            settled, _ = await self.write(unsure, ())
        except Unavailable as fault:
            log.warning("the store still does not answer: %s", fault)
        if self.unsure:
            await asyncio.sleep(RESEND_SECONDS * (0.5 + self.rng.random() / 2))
        return settled

    def _devices(self, binding: Binding) -> tuple[int, ...]:
        """Those that the pod was given; few ask for any."""
        pods = binding.waiting.pods
        hold = self.books.snapshot.held(binding.waiting.uid) if pods.gpu_milli or pods.gpu_count else None
        return hold.devices if hold is not None else ()

    def _claims_nodes(self, bindings: Iterable[Binding]) -> list[Change]:
        """Writes down, before the pods are bound, where the claims without a volume are to have one: it must not be
        forgotten when the pod ends before the volume is made."""
        changes: dict[str, Change] = {}
        for binding in bindings:
            if binding.waiting.pods.claims:
                for claim in self.books.snapshot.volumes.undecided(binding.waiting.pods.claims):
                    changes.setdefault(claim.metadata.uid, select_node(claim, binding.node))
        return list(changes.values())

    def _settle(self, bindings: Sequence[Binding], results: Sequence[Record | Fault | None]) -> Settled:
        """Compares what was asked with what is committed."""
        settled, now = Settled(), self.now()
        for binding, result in zip(bindings, results, strict=False):
            if isinstance(result, NotLeader):
                raise result
            if isinstance(result, Unavailable):
                self.unsure.append(binding)
                continue
            pod = result.message if isinstance(result, Record) else None
            wanted = binding.waiting.uid, binding.node
            if isinstance(pod, o.Pod) and (pod.metadata.uid, pod.spec.nodeName) == wanted:
                settled.bound.append(binding)
                self.meter.observe_bound(max(0.0, now - seconds(pod.metadata.creationTimestamp)))
                continue
            settled.freed += self._undo([binding])
            if not isinstance(pod, o.Pod) or not pod.spec.nodeName:  # else its event says where somebody bound it
                settled.failed.append(binding)
                self.meter.observe_schedule("error", 1, 0.0)
        return settled

    def _undo(self, bindings: Iterable[Binding]) -> list[Hold]:
        """Gives back what was assumed, unless an event has said meanwhile that it is bound."""
        freed = []
        for binding in bindings:
            uid = binding.waiting.uid
            pod = self.store.view.get(*binding.waiting.key)
            if isinstance(pod, o.Pod) and pod.metadata.uid == uid and pod.spec.nodeName:
                hold = self.books.snapshot.held(uid)
                if hold is not None and hold.node == pod.spec.nodeName:
                    continue
            given = self.books.undo(uid)
            if given is not None:
                freed.append(given)
        return freed
