"""Whether a plan still holds: what it said against what would happen now, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from shoal.master.model import KINDS
from shoal.proto.v1 import cluster_pb2 as c

MOST_WORDS = 20  # differences that are told


def changed_objects(plan: c.PlanResponse, now: c.PlanResponse) -> Iterator[str]:
    """Objects of the plan that are others than it has seen."""
    for was, found in zip(plan.objects, now.objects, strict=True):
        name = shown(was.key)
        if found.HasField("failure"):
            yield f"{name} is refused now: {found.failure.message}"
        elif was.uid and not found.uid:
            yield f"{name} has been deleted since"
        elif found.uid and not was.uid:
            yield f"{name} has been made since"
        elif was.uid != found.uid:
            yield f"{name} has been deleted and made anew since"
        elif was.revision != found.revision:
            yield f"{name} has been changed since (resourceVersion {was.revision}, now {found.revision})"


def changed_pods(plan: c.PlanResponse, now: c.PlanResponse) -> Iterator[str]:
    """Placements, evictions and refusals that come out otherwise; why a pod waits may change in its numbers."""
    before, after = _grouped(plan.pods), _grouped(now.pods)
    words = 0
    for group in sorted(before.keys() | after.keys()):
        was, found = before.get(group, Counter()), after.get(group, Counter())
        if was == found:
            continue
        words += 1
        if words > MOST_WORDS:
            yield "and more"
            return
        owner, fate = group
        yield f"{owner}: the plan had {_told(fate, was)}; now it is {_told(fate, found)}"


def _grouped(pods: Iterable[c.PlannedPod]) -> dict[tuple[str, str], Counter[tuple[str, str]]]:
    """By owner and fate: how many of which pod (if it has a name by now) and node."""
    groups: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for pod in pods:
        owner = f"{shown(pod.owner)} in {pod.owner.namespace}"
        named = pod.key.name if pod.uid else ""
        groups.setdefault((owner, pod.fate), Counter())[named, pod.node] += 1
    return groups


def _told(fate: str, found: Counter[tuple[str, str]]) -> str:
    if not found:
        return f"none {'pending' if fate == 'pending' else fate}"
    if fate == "pending":
        return f"{found.total()} pending"
    parts = [_part(name, node, number) for (name, node), number in sorted(found.items())]
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    return f"{', '.join(parts[:5])}{more} {fate}"


def _part(name: str, node: str, number: int) -> str:
    return f"{f'pod {name}' if name else number} on {node or 'no node'}"


def key_of(found: c.Object | c.PlannedObject) -> tuple[str, str]:
    """Kind and name, which tell whether two lists belong together."""
    if isinstance(found, c.PlannedObject):
        return found.key.kind, found.key.name
    message = KINDS[found.kind].FromString(found.body) if found.kind in KINDS else None
    return found.kind, message.metadata.name if message is not None else ""


def shown(key: c.Key) -> str:
    """As the command names it: deployment/web."""
    return f"{key.kind.lower()}/{key.name}"
