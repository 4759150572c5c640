"""The text of `describe`, kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.deploy.cli.printers import budgets, status, storage
from shoal.deploy.cli.printers.lines import Lines, line, rows, several, since
from shoal.deploy.cli.printers.placement import placement_lines
from shoal.deploy.cli.printers.pods import conditions, last_death, pod_lines, spec_lines
from shoal.deploy.cli.printers.tables import event_time
from shoal.deploy.cli.printers.text import NONE, age, clean, size
from shoal.proto import quantity
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.validation import LAST_APPLIED
from shoal.proto.walker import format_time

MOST_VALUE = 2000  # characters of a ConfigMap's value


def describe(
    obj: Any, now: float, events: Sequence[o.Event], pods: Sequence[o.Pod] = (), deaths: Sequence[o.Death] = ()
) -> list[str]:
    """The lines that describe an object; `pods` are those on it when it is a node, `deaths` those of a pod."""
    lines = [*_head(obj), *_BODIES[obj.kind](obj, now)]
    if obj.kind == "Pod":
        lines += last_death(obj, deaths, now)
    if obj.kind == "Node":
        lines += _node_pods(obj, pods)
    if obj.kind != "Event":
        lines += _events(events, now)
    return lines


def _head(obj: Any) -> Lines:
    meta = obj.metadata
    yield line("Name", meta.name)
    if meta.namespace:
        yield line("Namespace", meta.namespace)
    yield from several("Labels", meta.labels)
    yield from several("Annotations", {k: v for k, v in meta.annotations.items() if k != LAST_APPLIED})
    if meta.HasField("creationTimestamp"):
        yield line("Created", format_time(meta.creationTimestamp.seconds))
    for owner in meta.ownerReferences:
        if owner.controller:
            yield line("Controlled By", f"{owner.kind}/{owner.name}")
    if meta.HasField("deletionTimestamp"):
        when = format_time(meta.deletionTimestamp.seconds)
        yield line("Being Deleted", f"{when} (grace period {meta.deletionGracePeriodSeconds}s)")
    if meta.finalizers:
        yield line("Finalizers", ", ".join(meta.finalizers))


# ---- workloads ----
def _deployment(obj: o.Deployment, now: float) -> Lines:
    s = obj.status
    yield from several("Selector", obj.spec.selector.matchLabels)
    counts = f"{obj.spec.replicas} desired, {s.updatedReplicas} updated, {s.replicas} total"
    yield line("Replicas", f"{counts}, {s.availableReplicas} available, {s.unavailableReplicas} unavailable")
    yield from _template(obj.spec.template, now)
    yield from conditions(s.conditions, now)


def _replica_set(obj: o.ReplicaSet, now: float) -> Lines:
    s = obj.status
    yield from several("Selector", obj.spec.selector.matchLabels)
    yield line("Replicas", f"{obj.spec.replicas} desired, {s.replicas} current, {s.readyReplicas} ready")
    yield from _template(obj.spec.template, now)
    yield from conditions(s.conditions, now)


def _template(template: o.PodTemplateSpec, now: float) -> Lines:
    yield "Pod Template:"
    yield from several("Labels", template.metadata.labels, 2)
    yield from spec_lines(template.spec, None, now, 2)
    yield from placement_lines(template.spec, 2)


# ---- nodes ----
def _node(node: o.Node, now: float) -> Lines:
    yield line("Status", status.node_status(node))
    taints = [f"{t.key}={t.value}:{t.effect}" if t.value else f"{t.key}:{t.effect}" for t in node.spec.taints]
    yield line("Taints", ", ".join(taints) or NONE)
    yield line("Pod Range", node.spec.podCIDR or NONE)
    yield from conditions(node.status.conditions, now)
    for address in node.status.addresses:
        yield line(address.type, address.address)
    for name, amounts in (("Capacity", node.status.capacity), ("Allocatable", node.status.allocatable)):
        yield from several(name, {key: amounts[key].text for key in amounts})
    info = node.status.nodeInfo
    for name, value in (
        ("Machine ID", info.machineID),
        ("Boot ID", info.bootID),
        ("Kernel", info.kernelVersion),
        ("OS Image", info.osImage),
        ("Architecture", info.architecture),
        ("Runtime", info.containerRuntimeVersion),
        ("Agent", info.kubeletVersion),
    ):
        if value:
            yield line(name, value)
    if node.status.images:
        total = sum(image.sizeBytes for image in node.status.images)
        yield line("Images", f"{len(node.status.images)} ({size(total)})")


def _node_pods(node: o.Node, pods: Sequence[o.Pod]) -> Lines:
    """The pods on a node and what they ask for, with the sum as a part of what can be given."""
    found = [["Namespace", "Name", "Status", "CPU Requests", "Memory Requests"]]
    cpu = memory = 0
    for pod in pods:
        asked = [_asked(pod, "cpu"), _asked(pod, "memory")]
        if pod.status.phase not in ("Succeeded", "Failed"):
            cpu, memory = cpu + asked[0], memory + asked[1]
        amounts = [quantity.of_milli(asked[0] // 10**6), quantity.of_bytes(asked[1] // 10**9)]
        found.append([pod.metadata.namespace, pod.metadata.name, status.pod_status(pod), *amounts])
    yield from rows(f"Pods ({len(pods)})", found)
    yield line("Asked For", f"cpu {_part(cpu, node, 'cpu')}, memory {_part(memory, node, 'memory')}")


def _asked(pod: o.Pod, name: str) -> int:
    """The sum of the requests, in billionths."""
    texts = [c.resources.requests[name].text for c in pod.spec.containers if name in c.resources.requests]
    return sum(_nanos(text) for text in texts)


def _nanos(text: str) -> int:
    try:
        return quantity.parse(text).nanos
    except quantity.QuantityError:
        return 0  # an old object that today's rules would refuse; a listing must not fail over it


def _part(nanos: int, node: o.Node, name: str) -> str:
    text = quantity.of_milli(nanos // 10**6) if name == "cpu" else quantity.of_bytes(nanos // 10**9)
    whole = _nanos(node.status.allocatable[name].text) if name in node.status.allocatable else 0
    return f"{text} ({100 * nanos // whole}%)" if whole else text


# ---- others ----
def _namespace(obj: o.Namespace, now: float) -> Lines:
    yield line("Status", "Terminating" if obj.metadata.HasField("deletionTimestamp") else obj.status.phase or "Active")


def _config_map(obj: o.ConfigMap, now: float) -> Lines:
    if obj.immutable:
        yield line("Immutable", "true")
    yield "Data:"
    for key in sorted(obj.data):
        value = obj.data[key]
        yield f"  {clean(key)}:"
        yield from (f"    {clean(part)}" for part in value[:MOST_VALUE].splitlines())
        if len(value) > MOST_VALUE:
            yield f"    ... ({len(value)} characters)"
    for key in sorted(obj.binaryData):
        yield f"  {clean(key)}: {len(obj.binaryData[key])} bytes"


def _secret(obj: o.Secret, now: float) -> Lines:
    yield line("Type", obj.type)
    yield "Data:"  # never the values: terminals are looked at and recorded
    yield from (f"  {clean(key)}: {len(obj.data[key])} bytes" for key in sorted(obj.data))


# ---- storage ----
def _volume(obj: o.PersistentVolume, now: float) -> Lines:
    spec = obj.spec
    yield line("StorageClass", spec.storageClassName or NONE)
    yield line("Status", storage.phase(obj))
    for name, value in (("Reason", obj.status.reason), ("Message", obj.status.message)):
        if value:
            yield line(name, value)
    yield line("Claim", storage.bound_to(obj) or NONE)
    yield line("Reclaim Policy", spec.persistentVolumeReclaimPolicy or "Retain")
    yield line("Access Modes", storage.modes(spec.accessModes) or NONE)
    yield from several("Capacity", {name: amount.text for name, amount in spec.capacity.items()})
    yield line("Node", storage.node_of(obj) or "<any>")
    if spec.HasField("hostPath"):
        yield line("Source", f"hostPath {spec.hostPath.path}")
    else:
        yield line("Source", f"local {spec.local.path or '(a folder that the node chooses)'}")


def _claim(obj: o.PersistentVolumeClaim, now: float) -> Lines:
    spec = obj.spec
    yield line("StorageClass", spec.storageClassName if spec.HasField("storageClassName") else storage.UNSET)
    yield line("Status", storage.phase(obj))
    yield line("Volume", spec.volumeName or NONE)
    asked = spec.resources.requests
    yield line("Asks For", ", ".join(asked[name].text for name in sorted(asked)) or NONE)
    yield from several("Capacity", {name: amount.text for name, amount in obj.status.capacity.items()})
    yield line("Access Modes", storage.modes(obj.status.accessModes or spec.accessModes) or NONE)
    yield from conditions(obj.status.conditions, now)


def _class(obj: o.StorageClass, now: float) -> Lines:
    yield line("Default", "yes" if storage.is_default(obj) else "no")
    yield line("Provisioner", obj.provisioner)
    yield line("Reclaim Policy", obj.reclaimPolicy or "Delete")
    yield line("Binding", obj.volumeBindingMode or "Immediate")


# ---- deaths ----
def _death(obj: o.Death, now: float) -> Lines:
    yield line("Pod", f"{obj.pod.name} ({obj.pod.uid})")
    yield line("Container", obj.container + (" (init)" if obj.initContainer else ""))
    yield line("Attempt", obj.attempt)
    yield line("Node", obj.node or NONE)
    yield line("Image", obj.image)
    if obj.imageID:
        yield line("Image ID", obj.imageID)
    how = f"signal {obj.signal}" if obj.signal else f"exit code {obj.exitCode}"
    yield line("Ended", f"{obj.reason or 'Error'}, {how}")
    if obj.cause:
        yield line("Cause", obj.cause)
    if obj.message:
        yield line("Message", obj.message)
    for name, time in (("Started", obj.startedAt), ("Finished", obj.finishedAt), ("Last Healthy", obj.lastHealthyAt)):
        if time.seconds:
            yield line(name, since(time, now))
    yield from _consumed(obj.resources)
    if obj.changes:
        yield "Changes since it was last healthy:"
        yield from (f"  {clean(change)}" for change in obj.changes)
    if obj.probes:
        found = [["Probe", "When", "Passed", "Took", "Message"]]
        for p in obj.probes:
            when = since(p.at, now)
            found.append([p.probe, when, "yes" if p.passed else "no", f"{p.milliseconds}ms", p.message])
        yield from rows("Probes", found)
    if obj.logTail:
        yield "Last Lines:"
        yield from (f"  {clean(part)}" for part in obj.logTail)


def _consumed(used: o.ResourceRecord) -> Lines:
    """What the container took, as far as it was measured."""
    if not used.ByteSize():
        return
    limit = f" of {size(used.memoryLimitBytes)}" if used.memoryLimitBytes else ""
    yield line("Peak Memory", size(used.peakMemoryBytes) + limit)
    yield line("CPU Time", f"{used.cpuSeconds:.1f}s")
    if used.throttledPeriods:
        yield line("CPU Throttled", f"{used.throttledPeriods} of {used.periods} periods, {used.throttledSeconds:.1f}s")
    if used.oomKills:
        yield line("Memory Kills", used.oomKills)
    if used.refusedForks:
        yield line("Refused Forks", used.refusedForks)
    for pressure in used.pressure:
        stalled = f"some {pressure.someSeconds:.1f}s, full {pressure.fullSeconds:.1f}s"
        yield line("Stalled", f"{pressure.resource}: {stalled}")


def _event(obj: o.Event, now: float) -> Lines:
    about = obj.involvedObject
    yield line("Object", f"{about.kind}/{about.name}")
    yield line("Type", obj.type)
    yield line("Reason", obj.reason)
    yield line("Message", obj.message)
    yield line("Count", obj.count)
    yield line("First Seen", since(obj.firstTimestamp, now))
    yield line("Last Seen", since(obj.lastTimestamp, now))


def _events(events: Sequence[o.Event], now: float) -> Lines:
    if not events:
        yield line("Events", NONE)
        return
    found = [["Type", "Reason", "Age", "From", "Message"]]
    for event in events:
        when = age(now - event_time(event))
        if event.count > 1:
            when += f" (x{event.count} over {age(now - event.firstTimestamp.seconds)})"
        found.append([event.type or "Normal", event.reason, when, event.source.component, event.message.strip()])
    yield from rows("Events", found)


_BODIES: Mapping[str, Callable[[Any, float], Lines]] = {
    "Pod": pod_lines,
    "Deployment": _deployment,
    "ReplicaSet": _replica_set,
    "Node": _node,
    "Namespace": _namespace,
    "ConfigMap": _config_map,
    "Secret": _secret,
    "Event": _event,
    "PersistentVolume": _volume,
    "PersistentVolumeClaim": _claim,
    "StorageClass": _class,
    "PriorityClass": budgets.class_lines,
    "PodDisruptionBudget": budgets.budget_lines,
    "PodGroup": budgets.group_lines,
    "Death": _death,
}
