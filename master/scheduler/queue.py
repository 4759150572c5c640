"""The queue: who waits, in which order their turns come, and the runs in which they are placed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from shoal.master.model import Key
from shoal.master.scheduler.classes import PodClass


class Waiting(NamedTuple):
    """A pod in the queue. `arrival`: see arrival_of."""

    uid: str
    key: Key
    pods: PodClass
    arrival: tuple[int, str] = (0, "")


def arrival_of(created: int, name: str, uid: str) -> tuple[int, str]:
    """What orders pods of one priority: etcd's create revision, then name, then uid. Pods that were written together
    have one revision; their names, not their random uids, tell workloads apart, so that plans foresee the order."""
    return created, f"{name} {uid}"


class Run(NamedTuple):
    """Neighbours that are placed together: pods of one class, or the members of a gang (`group` says which)."""

    group: str
    pods: PodClass  # of the first
    waiting: Sequence[Waiting]


def order(queue: Iterable[Waiting]) -> list[Waiting]:
    """By priority, highest first, then by arrival; within one priority pods of one class stand together, at the place
    of the first of them, and so do the members of a gang, ordered in the same way among themselves."""
    by_priority: dict[int, list[Waiting]] = {}
    for one in sorted(queue, key=lambda waiting: waiting.arrival):
        by_priority.setdefault(one.pods.priority, []).append(one)
    result: list[Waiting] = []
    for priority in sorted(by_priority, reverse=True):
        for together in _together(by_priority[priority], _gang_or_class).values():
            if together[0].pods.group:
                for alike in _together(together, lambda waiting: waiting.pods).values():
                    result += alike
            else:
                result += together
    return result


def _gang_or_class(waiting: Waiting) -> Hashable:
    pods = waiting.pods
    return (pods.namespace, pods.group, pods.priority) if pods.group else pods


def _together(queue: Sequence[Waiting], key: Callable[[Waiting], Hashable]) -> dict[Hashable, list[Waiting]]:
    found: dict[Hashable, list[Waiting]] = {}
    for one in queue:
        found.setdefault(key(one), []).append(one)
    return found


def runs(queue: Sequence[Waiting], alone: Collection[str]) -> Iterator[Run]:
    """In the order of the queue; a pod whose uid is to stand `alone` is a run of its own, save in its gang."""
    start, end = 0, len(queue)
    while start < end:
        pods = queue[start].pods
        stop = start + 1
        if pods.group:
            key = _gang_or_class(queue[start])
            while stop < end and _gang_or_class(queue[stop]) == key:
                stop += 1
        elif not alone:
            while stop < end and queue[stop].pods is pods:
                stop += 1
            while stop < end and queue[stop].pods == pods:
                stop += 1
        elif queue[start].uid not in alone:
            while stop < end and queue[stop].pods == pods and queue[stop].uid not in alone:
                stop += 1
        yield Run(pods.group, pods, queue[start:stop])
        start = stop
