"""Judges what agents tell of their pods: what becomes an Event (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from shoal.master.controllers.base import Said
from shoal.master.controllers.events import MESSAGE_LENGTH
from shoal.master.model import View
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

TYPES = frozenset({"Normal", "Warning"})
REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
MOST_COUNT = 1000  # that one report may say of one thing
MOST_AT_ONCE = 100  # of one report; they wait in memory


def judge(view: View, node: str, told: Iterable[s.Happening]) -> Iterator[Said]:
    """Only of the node's own pods; what is malformed, or about a pod that is gone, is dropped."""
    for one in islice(told, MOST_AT_ONCE):
        pod = view.by_uid(one.uid) if one.uid else None
        if not isinstance(pod, o.Pod) or pod.spec.nodeName != node:
            continue
        if one.type in TYPES and REASON.fullmatch(one.reason) and one.container in _parts(pod):
            yield Said(
                pod,
                one.type,
                one.reason,
                one.message[:MESSAGE_LENGTH],
                one.container,
                min(max(one.count, 1), MOST_COUNT),
            )


def _parts(pod: o.Pod) -> frozenset[str]:
    return frozenset({"", *(c.name for c in (*pod.spec.initContainers, *pod.spec.containers))})
