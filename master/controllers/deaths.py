"""Death certificates: so many for each container and namespace, for so long; the newest stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

from shoal.master.controllers.base import Controller, Outcome, count, seconds
from shoal.master.model import Delete, Event, Key, View, key_of
from shoal.proto.v1 import objects_pb2 as o

KEPT_PER_CONTAINER = 5  # of one pod
KEPT_PER_NAMESPACE = 1000
KEPT_SECONDS = 7 * 24 * 3600.0
ALL = "*"  # a namespace's certificates are looked at together


def controller(kept_seconds: float = KEPT_SECONDS) -> Controller:
    return Controller("deaths", {"Death": space_key}, partial(reconcile, kept_seconds=kept_seconds))


def space_key(_view: View, event: Event) -> Iterable[Key]:
    return (Key("Death", event.key.namespace, ALL),)


def reconcile(view: View, key: Key, now: float, kept_seconds: float = KEPT_SECONDS) -> Outcome:
    """Removes what is too old or too much in one namespace, and comes again when the next one is."""
    found = [death for death in view.all("Death", key.namespace) if isinstance(death, o.Death)]
    found.sort(key=lambda death: (seconds(death.metadata.creationTimestamp), death.metadata.name), reverse=True)
    kept: list[o.Death] = []
    gone: list[o.Death] = []
    per_container: Counter[tuple[str, str]] = Counter()
    for death in found:
        whose = (death.pod.uid, death.container)
        expired = now - seconds(death.metadata.creationTimestamp) >= kept_seconds
        full = per_container[whose] >= KEPT_PER_CONTAINER or len(kept) >= KEPT_PER_NAMESPACE
        if expired or full:
            gone.append(death)
        else:
            kept.append(death)
            per_container[whose] += 1
    again = seconds(kept[-1].metadata.creationTimestamp) + kept_seconds - now if kept else None
    changes = [Delete(key_of(death), uid=death.metadata.uid) for death in gone]
    return Outcome(list(changes), f"removed {count(len(gone), 'old certificate')}" if gone else "", again=again)
