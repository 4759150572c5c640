"""What would happen, as text: objects, pods by owner, images, headroom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from shoal.deploy.cli.printers.text import clean, size, table
from shoal.proto.v1 import cluster_pb2 as c

MOST_NODES = 12  # that one line counts pods on
MOST_NAMES = 5  # pods that one line names
MOST_IMAGES = 30
# fate -> the verb for so many pods, and what comes before their nodes
FATES = {
    "created": ("to create", "on"),
    "placed": ("given a node", "on"),
    "pending": ("left pending", ""),
    "preempted": ("evicted for others", "from"),
    "deleted": ("to delete", "from"),
    "lost": ("lost", "with"),
}
UNITS = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def shown(key: c.Key) -> str:
    """deployment/web"""
    return clean(f"{key.kind.lower()}/{key.name}")


def pods(count: int) -> str:
    return f"{count} {'pod' if count == 1 else 'pods'}"


def plan_lines(plan: c.PlanResponse, wide: bool) -> Iterator[str]:
    """Objects with what becomes of their pods, then other people's pods, then images."""
    left = list(plan.pods)
    for planned in plan.objects:
        yield f"{shown(planned.key)} {_action(planned)}"
        yield from (f"  {clean(one)}" for one in planned.differences)
        own = [pod for pod in left if pod.owner == planned.key]
        left = [pod for pod in left if pod.owner != planned.key]
        yield from _of_owner(own, wide)
    yield from owners(left, wide)
    yield from _images(plan.images)
    yield from (f"note: {clean(note)}" for note in plan.notes)


def _action(planned: c.PlannedObject) -> str:
    if planned.HasField("failure"):
        return f"would be refused: {clean(planned.failure.message)}"
    return {"created": "would be created", "configured": "would be changed", "unchanged": "stays as it is"}.get(
        planned.action, planned.action
    )


def owners(found: Sequence[c.PlannedPod], wide: bool) -> Iterator[str]:
    """Pods by their owners, in the order in which these come."""
    groups: dict[tuple[str, str, str], list[c.PlannedPod]] = {}
    for pod in found:
        groups.setdefault((pod.owner.kind, pod.owner.namespace, pod.owner.name), []).append(pod)
    for group in groups.values():
        owner = group[0].owner
        yield f"{shown(owner)} (namespace {clean(owner.namespace)})"
        yield from _of_owner(group, wide)


def _of_owner(found: Sequence[c.PlannedPod], wide: bool) -> Iterator[str]:
    for fate, (verb, before) in FATES.items():
        group = [pod for pod in found if pod.fate == fate]
        if not group:
            continue
        places = Counter(pod.node for pod in group if pod.node)
        where = f" {before} {_counted(places)}" if places and before else ""
        yield f"  {pods(len(group))} {verb}{where}{_names(group)}"
        yield from _reasons(group)
        if wide:
            yield from (f"    {_name(pod)}{f' {before} {pod.node}' if pod.node else ''}" for pod in group)


def _counted(places: Counter[str]) -> str:
    """node-1 (2), node-2 (1)"""
    parts = [f"{clean(node)} ({count})" for node, count in sorted(places.items())]
    more = f" and {len(parts) - MOST_NODES} more nodes" if len(parts) > MOST_NODES else ""
    return ", ".join(parts[:MOST_NODES]) + more


def _name(pod: c.PlannedPod) -> str:
    return clean(f"pod/{pod.key.name}") if pod.key.name else "a new pod"


def _names(group: Sequence[c.PlannedPod]) -> str:
    """The pods that have names, where these say something."""
    named = [clean(pod.key.name) for pod in group if pod.key.name and pod.owner.kind != "Pod"]
    if not named or len(named) > MOST_NAMES:
        return ""
    return f": {', '.join(named)}"


def _reasons(group: Sequence[c.PlannedPod]) -> Iterator[str]:
    for reason, count in Counter(pod.reason for pod in group if pod.reason).items():
        yield f"    {f'{pods(count)}: ' if count < len(group) else ''}{clean(reason)}"


def _images(images: Sequence[c.ImageFetch]) -> Iterator[str]:
    if not images:
        return
    known = sum(one.bytes for one in images)
    unknown = sum(not one.bytes for one in images)
    parts = [size(known)] if known else []
    parts += [f"{unknown} of unknown size"] if unknown else []
    yield f"images to fetch: {len(images)} ({', '.join(parts)})"
    rows = [[f"  {one.node}", clean(one.image), size(one.bytes) if one.bytes else "?"] for one in images[:MOST_IMAGES]]
    yield from table(rows)
    if len(images) > MOST_IMAGES:
        yield f"  and {len(images) - MOST_IMAGES} more"


def summary(objects: Sequence[c.PlannedObject], found: Sequence[c.PlannedPod]) -> str:
    """One sentence with all counts."""
    actions = Counter("refused" if one.HasField("failure") else one.action for one in objects)
    words = [("created", "to create"), ("configured", "to change"), ("unchanged", "unchanged"), ("refused", "refused")]
    parts = [f"{actions[action]} {word}" for action, word in words if actions[action]]
    return f"objects: {', '.join(parts) or 'none'}; pods: {counts(found)}"


def counts(found: Iterable[c.PlannedPod]) -> str:
    fates = Counter(pod.fate for pod in found)
    words = {"created": "to create", "placed": "placed", "deleted": "to delete"}
    return ", ".join(f"{fates[fate]} {words.get(fate, fate)}" for fate in FATES if fates[fate]) or "none touched"


def headroom_lines(rooms: Sequence[c.Headroom]) -> Iterator[str]:
    """What is free on the nodes that take pods, before and after."""
    rows = [["FREE", "NOW", "THEN", "LARGEST NOW", "LARGEST THEN"]]
    for room in rooms:
        values = (room.free_before, room.free_after, room.largest_before, room.largest_after)
        rows.append([room.resource, *(amount(room.resource, value) for value in values)])
    yield from table(rows)


def amount(resource: str, value: int) -> str:
    """cpu as 1500m, bytes in binary units, counts as they are."""
    if resource == "cpu":
        return f"{value}m" if value % 1000 else str(value // 1000)
    if resource in ("memory", "ephemeral-storage"):
        for suffix, unit in UNITS:
            if value >= unit:
                return f"{value / unit:.1f}{suffix}"
    return str(value)
