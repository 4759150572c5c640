"""Waiting until objects are ready or gone, with progress on a terminal and reasons when time is out."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from shoal.deploy.cli.failures import FAILED, OK, TIMED_OUT
from shoal.deploy.cli.follow import Identity, follow, identity
from shoal.deploy.cli.naming import shown
from shoal.deploy.cli.printers.reasons import why_not_ready
from shoal.deploy.cli.printers.status import ready_state
from shoal.deploy.cli.printers.text import age, clean
from shoal.proto.kinds import Object
from shoal.proto.v1 import objects_pb2 as o

if TYPE_CHECKING:
    from shoal.deploy.cli.client import Client

WAITABLE = ("Pod", "Deployment", "ReplicaSet")
MOST_REASONS = 5  # pods whose reasons are told per object


class Progress:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = ""

    def show(self, text: str) -> None:
        text = clean(text)[:100]
        if self._live and text != self._last:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._last = text

    def clear(self) -> None:
        if self._live and self._last:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._last = ""


def wait_ready(client: Client, objects: Sequence[Object], timeout: float) -> int:
    """Waits until all are ready; gives the exit code, and says on stderr why not."""
    targets = {identity(obj): obj for obj in objects if obj.kind in WAITABLE}
    if not targets:
        return OK
    kinds = sorted({kind for kind, _, _ in targets} | {"Pod"})
    namespaces = {namespace for _, namespace, _ in targets}
    namespace = namespaces.pop() if len(namespaces) == 1 else ""
    deadline, progress = time.monotonic() + timeout, Progress()
    state: dict[Identity, Object] = {}
    try:
        for state in follow(client, kinds, namespace, deadline):
            lost = [key for key, obj in targets.items() if _failed(state.get(key), obj)]
            if lost:
                progress.clear()
                _explain(lost, state, "failed")
                return FAILED
            open_ = [key for key in targets if not _ready(state.get(key))]
            if not open_:
                progress.clear()
                return OK
            progress.show(f"waiting for {len(open_)} of {len(targets)}: {_summary(open_, state)}")
    finally:
        progress.clear()
    _explain([key for key in targets if not _ready(state.get(key))], state, f"not ready after {age(timeout)}")
    return TIMED_OUT


def _ready(obj: Object | None) -> bool:
    return obj is not None and not obj.metadata.HasField("deletionTimestamp") and ready_state(obj)[0]


def _failed(now: Object | None, applied: Object) -> bool:
    """Whether waiting is pointless: a pod has ended badly, or the object was deleted and replaced meanwhile."""
    if now is None:
        return False  # a follower may not have it yet
    if now.metadata.uid != applied.metadata.uid and applied.metadata.uid:
        return True
    return isinstance(now, o.Pod) and now.status.phase == "Failed"


def _summary(keys: Iterable[Identity], state: dict[Identity, Object]) -> str:
    parts = []
    for key in keys:
        obj = state.get(key)
        parts.append(f"{shown(key[0], key[2])} {ready_state(obj)[1] if obj is not None else 'not there'}")
    return ", ".join(parts)


def _explain(keys: Collection[Identity], state: dict[Identity, Object], what: str) -> None:
    for key in keys:
        obj = state.get(key)
        how = ready_state(obj)[1] if obj is not None else "it is not there any more"
        print(f"error: {shown(key[0], key[2])} {what}: {clean(how)}", file=sys.stderr)
        for pod in _pods_behind(obj, state)[:MOST_REASONS]:
            print(f"  pod/{pod.metadata.name}: {clean(why_not_ready(pod))}", file=sys.stderr)
            if any(c.restartCount or c.state.HasField("terminated") for c in pod.status.containerStatuses):
                where = f" -n {pod.metadata.namespace}"
                print(f"  more: shoal why{where} pod/{pod.metadata.name}", file=sys.stderr)


def _pods_behind(obj: Object | None, state: dict[Identity, Object]) -> list[o.Pod]:
    """The pods that keep an object from being ready."""
    from shoal.proto.selector import from_message

    if isinstance(obj, o.Pod):
        return [obj]
    if not isinstance(obj, o.Deployment | o.ReplicaSet):
        return []
    selector = from_message(obj.spec.selector)
    return [
        pod
        for pod in state.values()
        if isinstance(pod, o.Pod)
        and pod.metadata.namespace == obj.metadata.namespace
        and selector.matches(pod.metadata.labels)
        and not ready_state(pod)[0]
    ]


def wait_gone(client: Client, gone: Collection[tuple[Identity, str]], timeout: float) -> int:
    """Waits until these objects (identity, uid) are no more; gives the exit code."""
    if not gone:
        return OK
    kinds = sorted({key[0] for key, _ in gone})
    namespaces = {key[1] for key, _ in gone}
    namespace = namespaces.pop() if len(namespaces) == 1 else ""
    deadline, progress = time.monotonic() + timeout, Progress()
    left = sorted(gone)
    try:
        for state in follow(client, kinds, namespace, deadline):
            left = [(key, uid) for key, uid in sorted(gone) if key in state and state[key].metadata.uid == uid]
            if not left:
                return OK
            progress.show(f"waiting for {len(left)} to go: {', '.join(shown(key[0], key[2]) for key, _ in left)}")
    finally:
        progress.clear()
    for key, _ in left:
        print(f"error: {shown(key[0], key[2])} is still there after {age(timeout)}", file=sys.stderr)
    return TIMED_OUT
