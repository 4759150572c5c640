"""Events in: what they mean for the queue, for the snapshot, and for those who wait."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from shoal.master.controllers.base import terminating
from shoal.master.model import FINAL_PHASES, Event, Key
from shoal.master.scheduler.classes import Classes, PodClass
from shoal.master.scheduler.core import Waiting
from shoal.master.scheduler.queue import arrival_of
from shoal.master.scheduling.books import Books
from shoal.master.scheduling.changes import wants_node
from shoal.master.scheduling.decisions import Decisions
from shoal.master.scheduling.judge import Failed
from shoal.master.scheduling.news import News, admits
from shoal.master.scheduling.pending import Pending
from shoal.master.scheduling.queue import Queue
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.scheduler")

VOLUME_KINDS = frozenset({"StorageClass", "PersistentVolume", "PersistentVolumeClaim"})


class Intake:
    """Keeps queue and books in step with what is committed; `odd` are pods whose spec the core cannot read."""

    def __init__(
        self, books: Books, queue: Queue, classes: Classes, decisions: Decisions, clock: Callable[[], float]
    ) -> None:
        self.books, self.queue, self.decisions = books, queue, decisions
        self.odd: list[Failed] = []
        self.added = 0  # pods that came into the queue
        self.lowest = 0  # the lowest priority that was seen
        self._classes, self._clock = classes, clock

    def take(self, revision: int, events: Sequence[Event]) -> News:
        news = News()
        snapshot = self.books.snapshot
        facts = snapshot.nodes.facts
        before = {event.key.name: facts.get(event.key.name) for event in events if event.key.kind == "Node"}
        lowest = self.lowest
        for event in events:
            kind = event.key.kind
            if kind == "Pod":
                self._pod(event, news)
            elif kind in VOLUME_KINDS:
                news.volumes = True
            elif kind == "Namespace" and _labels(event.old) != _labels(event.new):
                news.spaces.add(event.key.name)
            elif kind == "PodGroup":
                news.groups.add((event.key.namespace, event.key.name))
        self.books.apply(revision, events)
        for name, old in before.items():
            new = facts.get(name)
            if new != old:
                news.nodes[name] = (old, new)
        self._check_nominations(news)
        if self.lowest < lowest:  # whoever was refused because nobody could be evicted is looked at again
            self.queue.ready_all(
                [uid for uid in self.queue.lot.where if self.evicts(self.queue.pods[uid].waiting.pods)]
            )
        return news

    def take_odd(self) -> list[Failed]:
        odd, self.odd = self.odd, []
        return odd

    def evicts(self, pods: PodClass) -> bool:
        """Whether there may be pods that could be evicted for it."""
        return pods.preempts and not pods.group and pods.priority > self.lowest

    def restore(self) -> None:
        """At the start of a term: pods that were nominated before have their room again, where it still makes sense."""
        for uid, pending in self.queue.pods.items():
            hold = self.books.snapshot.held(uid)
            if hold is not None and hold.nominated:
                pending.node = hold.node
                if self._tenable(pending):
                    self.queue.nominated[uid] = pending
                else:
                    pending.node = ""
                    self.books.undo(uid)

    # ---- pods ----
    def _pod(self, event: Event, news: News) -> None:
        old = event.old.message if event.old else None
        record = event.new
        pod = record.message if record else None
        if old is not None and (pod is None or pod.metadata.uid != old.metadata.uid):
            self.queue.drop(old.metadata.uid)
            self.decisions.forget(old.metadata.uid)
            self._free(old.metadata.uid, news)
        if record is None or not isinstance(pod, o.Pod):
            return
        uid = pod.metadata.uid
        self.lowest = min(self.lowest, pod.spec.priority)
        if not wants_node(pod):
            self.queue.drop(uid)
            if pod.spec.nodeName:
                if self.queue.lot.where:  # else nobody asks
                    self._bound(pod, event, news)
            elif self.books.undo(uid) is not None:  # deleted while its binding was under way, or nominated
                log.debug("pod %s goes before it has a node", event.key)
        elif pod.spec.schedulingGates:
            self._give_up(uid, news)
            self.queue.gate(uid)
        else:
            if uid not in self.queue.pods or not _same_needs(old, pod):
                self._waits(pod, event.key, record.created, news)

    def _free(self, uid: str, news: News) -> None:
        """The snapshot takes it out itself."""
        hold = self.books.snapshot.held(uid)
        if hold is not None:
            news.free(hold.node, hold.pods)

    def _give_up(self, uid: str, news: News) -> None:
        hold = self.books.undo(uid)
        if hold is not None:
            news.free(hold.node, hold.pods)

    def _bound(self, pod: o.Pod, event: Event, news: News) -> None:
        uid = pod.metadata.uid
        hold = self.books.snapshot.held(uid)
        if pod.status.phase in FINAL_PHASES:
            self._free(uid, news)
        elif hold is None:
            news.came.append(self._classes.of(pod))
        elif hold.node != pod.spec.nodeName:
            news.free(hold.node, hold.pods)
            news.came.append(hold.pods)
        elif not hold.leaving and terminating(pod):
            news.left.append(hold.pods)
        elif event.old is not None and _labels(event.old) != pod.metadata.labels:
            news.left.append(hold.pods)
            news.came.append(self._classes.of(pod))

    def _waits(self, pod: o.Pod, key: Key, created: int, news: News) -> None:
        uid = pod.metadata.uid
        pods = self._class(pod, key)
        if pods is None:
            self._give_up(uid, news)
            self.queue.drop(uid)
            return
        known = self.queue.pods.get(uid)
        if known is not None and known.waiting.pods == pods:
            return
        held = self.books.snapshot.held(uid)
        if held is not None and not held.nominated:
            return  # its binding is under way
        self._give_up(uid, news)
        since = known.since if known is not None else self._clock()
        waiting = Waiting(uid, key, pods, arrival_of(created, key.name, uid))
        self.queue.put(Pending(waiting, (-pods.priority, *waiting.arrival), since))
        self.added += 1

    def _class(self, pod: o.Pod, key: Key) -> PodClass | None:
        """None for one that the core fails on."""
        try:
            return self._classes.of(pod)
        except Exception as error:
            log.exception("the scheduler cannot read the spec of %s", key)
            self.odd.append(Failed(Waiting(pod.metadata.uid, key, _NOTHING), f"{type(error).__name__}: {error}"))
            return None

    # ---- nominations ----
    def _check_nominations(self, news: News) -> None:
        """A node that is lost, or does not want the pod any more, holds no room for it."""
        if not news.nodes:
            return
        for uid, pending in list(self.queue.nominated.items()):
            if pending.node in news.nodes and not self._tenable(pending):
                self._give_up(uid, news)
                pending.node = ""
                del self.queue.nominated[uid]
                self.queue.ready(uid)

    def _tenable(self, pending: Pending) -> bool:
        facts = self.books.snapshot.nodes.facts.get(pending.node)
        return facts is not None and admits(facts, pending.waiting.pods)


_NOTHING = PodClass((), (), (), (0, 0), "")


def _same_needs(old: object, new: o.Pod) -> bool:
    """Only the status is another: nothing that placement looks at."""
    if not isinstance(old, o.Pod) or old.spec != new.spec:
        return False
    before, after = old.metadata, new.metadata
    return before.labels == after.labels and before.ownerReferences == after.ownerReferences


def _labels(record: object) -> Mapping[str, str]:
    message = getattr(record, "message", None)
    return message.metadata.labels if message is not None else {}
