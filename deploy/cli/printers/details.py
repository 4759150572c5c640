"""The text of `describe`, kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shoal.deploy.cli.printers import status, storage
from shoal.deploy.cli.printers.reasons import why_not_ready
from shoal.deploy.cli.printers.tables import event_time
from shoal.deploy.cli.printers.text import NONE, age, clean, size, table
from shoal.proto import quantity
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.validation import LAST_APPLIED
from shoal.proto.walker import format_time

LABEL_WIDTH = 16
MOST_VALUE = 2000  # characters of a ConfigMap's value
Lines = Iterable[str]


def describe(
    obj: Any, now: float, events: Sequence[o.Event], pods: Sequence[o.Pod] = (), deaths: Sequence[o.Death] = ()
) -> list[str]:
    """The lines that describe an object; `pods` are those on it when it is a node, `deaths` those of a pod."""
    lines = [*_head(obj), *_BODIES[obj.kind](obj, now)]
    if obj.kind == "Pod":
        lines += _last_death(obj, deaths, now)
    if obj.kind == "Node":
        lines += _node_pods(obj, pods)
    if obj.kind != "Event":
        lines += _events(events, now)
    return lines


def _line(name: str, value: object, indent: int = 0) -> str:
    label = f"{' ' * indent}{name}:"
    return f"{label.ljust(LABEL_WIDTH + indent)} {clean(str(value))}".rstrip()


def _head(obj: Any) -> Lines:
    meta = obj.metadata
    yield _line("Name", meta.name)
    if meta.namespace:
        yield _line("Namespace", meta.namespace)
    yield from _several("Labels", meta.labels)
    yield from _several("Annotations", {k: v for k, v in meta.annotations.items() if k != LAST_APPLIED})
    if meta.HasField("creationTimestamp"):
        yield _line("Created", format_time(meta.creationTimestamp.seconds))
    for owner in meta.ownerReferences:
        if owner.controller:
            yield _line("Controlled By", f"{owner.kind}/{owner.name}")
    if meta.HasField("deletionTimestamp"):
        when = format_time(meta.deletionTimestamp.seconds)
        yield _line("Being Deleted", f"{when} (grace period {meta.deletionGracePeriodSeconds}s)")
    if meta.finalizers:
        yield _line("Finalizers", ", ".join(meta.finalizers))


def _several(name: str, values: Mapping[str, str], indent: int = 0) -> Lines:
    if not values:
        yield _line(name, NONE, indent)
    for index, key in enumerate(sorted(values)):
        text = f"{key}={values[key]}"
        yield _line(name, text, indent) if index == 0 else " " * (LABEL_WIDTH + indent + 1) + clean(text)


def _rows(title: str, rows: Sequence[Sequence[str]], indent: int = 2) -> Lines:
    yield f"{title}:"
    for line in table([[clean(cell) for cell in row] for row in rows]):
        yield " " * indent + line


# ---- pods ----
def _pod(pod: o.Pod, now: float) -> Lines:
    s = pod.status
    yield _line("Node", pod.spec.nodeName + (f"/{s.hostIP}" if s.hostIP else "") if pod.spec.nodeName else NONE)
    if s.HasField("startTime"):
        yield _line("Start Time", format_time(s.startTime.seconds))
    yield _line("Status", status.pod_status(pod))
    if s.reason:
        yield _line("Reason", s.reason)
    if s.message:
        yield _line("Message", s.message)
    yield _line("IP", s.podIP or NONE)
    if not status.ready_state(pod)[0]:
        yield _line("Not Ready", why_not_ready(pod))
    yield "Containers:"
    known = {c.name: c for c in s.containerStatuses}
    for container in pod.spec.containers:
        yield from _container(container, known.get(container.name), now)
    yield from _conditions(s.conditions, now)
    yield _line("QoS Class", s.qosClass or NONE)
    yield _line("Restart Policy", pod.spec.restartPolicy)
    yield _line("Grace Period", f"{pod.spec.terminationGracePeriodSeconds}s")
    yield from _several("Node-Selectors", pod.spec.nodeSelector)
    yield from _tolerations(pod.spec)


def _last_death(pod: o.Pod, deaths: Sequence[o.Death], now: float) -> Lines:
    if deaths:
        last = max(deaths, key=lambda death: (death.finishedAt.seconds, death.attempt))
        yield _line("Deaths", f"{len(deaths)} kept, see: shoal why pod/{pod.metadata.name}")
        yield _line("Last Death", f"container {last.container}, {age(now - last.finishedAt.seconds)} ago: {last.cause}")


def _container(container: o.Container, found: o.ContainerStatus | None, now: float) -> Lines:
    yield f"  {container.name}:"
    yield _line("Image", container.image, 4)
    if found is not None and found.containerID:
        yield _line("Container ID", found.containerID, 4)
    if found is not None and found.imageID:
        yield _line("Image ID", found.imageID, 4)
    ports = ", ".join(
        f"{p.containerPort}/{p.protocol or 'TCP'}" + (f" ({p.name})" if p.name else "") for p in container.ports
    )
    yield _line("Ports", ports or NONE, 4)
    for name, words in (("Command", container.command), ("Args", container.args)):
        if words:
            yield _line(name, " ".join(words), 4)
    if found is not None:
        yield from _state("State", found.state, now)
        if found.HasField("lastState"):
            yield from _state("Last State", found.lastState, now)
        yield _line("Ready", found.ready, 4)
        yield _line("Restarts", found.restartCount, 4)
    for name, amounts in (("Limits", container.resources.limits), ("Requests", container.resources.requests)):
        if amounts:
            yield from _several(name, {key: amounts[key].text for key in amounts}, 4)
    if container.env:
        yield from _several("Environment", {e.name: e.value for e in container.env}, 4)


def _state(name: str, state: o.ContainerState, now: float) -> Lines:
    if state.HasField("running"):
        yield _line(name, f"Running, since {_since(state.running.startedAt, now)}", 4)
    elif state.HasField("terminated"):
        ended = state.terminated
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.exitCode}"
        yield _line(name, f"Terminated: {ended.reason or 'Error'}, {how}", 4)
        if ended.message:
            yield _line("Message", ended.message, 6)
        if ended.finishedAt.seconds:
            yield _line("Ended", _since(ended.finishedAt, now), 6)
    elif state.HasField("waiting"):
        yield _line(name, f"Waiting: {state.waiting.reason}", 4)
        if state.waiting.message:
            yield _line("Message", state.waiting.message, 6)


def _since(time: o.Time, now: float) -> str:
    return f"{format_time(time.seconds)} ({age(now - time.seconds)} ago)"


def _conditions(conditions: Sequence[o.Condition], now: float) -> Lines:
    if not conditions:
        return
    rows = [["Type", "Status", "Since", "Reason", "Message"]]
    for c in conditions:
        since = age(now - c.lastTransitionTime.seconds) if c.lastTransitionTime.seconds else NONE
        rows.append([c.type, c.status, since, c.reason, c.message])
    yield from _rows("Conditions", rows)


def _tolerations(spec: o.PodSpec) -> Lines:
    texts = []
    for t in spec.tolerations:
        text = f"{t.key}={t.value}" if t.value else t.key or "every taint"
        text += f":{t.effect}" if t.effect else ""
        text += " op=Exists" if t.operator == "Exists" and t.key else ""
        texts.append(text + (f" for {t.tolerationSeconds}s" if t.HasField("tolerationSeconds") else ""))
    yield _line("Tolerations", "; ".join(texts) or NONE)


# ---- workloads ----
def _deployment(obj: o.Deployment, now: float) -> Lines:
    s = obj.status
    yield from _several("Selector", obj.spec.selector.matchLabels)
    counts = f"{obj.spec.replicas} desired, {s.updatedReplicas} updated, {s.replicas} total"
    yield _line("Replicas", f"{counts}, {s.availableReplicas} available, {s.unavailableReplicas} unavailable")
    yield from _template(obj.spec.template)
    yield from _conditions(s.conditions, now)


def _replica_set(obj: o.ReplicaSet, now: float) -> Lines:
    s = obj.status
    yield from _several("Selector", obj.spec.selector.matchLabels)
    yield _line("Replicas", f"{obj.spec.replicas} desired, {s.replicas} current, {s.readyReplicas} ready")
    yield from _template(obj.spec.template)
    yield from _conditions(s.conditions, now)


def _template(template: o.PodTemplateSpec) -> Lines:
    yield "Pod Template:"
    yield from _several("Labels", template.metadata.labels, 2)
    for container in template.spec.containers:
        yield from _container(container, None, 0)


# ---- nodes ----
def _node(node: o.Node, now: float) -> Lines:
    yield _line("Status", status.node_status(node))
    taints = [f"{t.key}={t.value}:{t.effect}" if t.value else f"{t.key}:{t.effect}" for t in node.spec.taints]
    yield _line("Taints", ", ".join(taints) or NONE)
    yield _line("Pod Range", node.spec.podCIDR or NONE)
    yield from _conditions(node.status.conditions, now)
    for address in node.status.addresses:
        yield _line(address.type, address.address)
    for name, amounts in (("Capacity", node.status.capacity), ("Allocatable", node.status.allocatable)):
        yield from _several(name, {key: amounts[key].text for key in amounts})
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
            yield _line(name, value)
    if node.status.images:
        total = sum(image.sizeBytes for image in node.status.images)
        yield _line("Images", f"{len(node.status.images)} ({size(total)})")


def _node_pods(node: o.Node, pods: Sequence[o.Pod]) -> Lines:
    """The pods on a node and what they ask for, with the sum as a part of what can be given."""
    rows = [["Namespace", "Name", "Status", "CPU Requests", "Memory Requests"]]
    cpu = memory = 0
    for pod in pods:
        asked = [_asked(pod, "cpu"), _asked(pod, "memory")]
        if pod.status.phase not in ("Succeeded", "Failed"):
            cpu, memory = cpu + asked[0], memory + asked[1]
        amounts = [quantity.of_milli(asked[0] // 10**6), quantity.of_bytes(asked[1] // 10**9)]
        rows.append([pod.metadata.namespace, pod.metadata.name, status.pod_status(pod), *amounts])
    yield from _rows(f"Pods ({len(pods)})", rows)
    yield _line("Asked For", f"cpu {_part(cpu, node, 'cpu')}, memory {_part(memory, node, 'memory')}")


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
    yield _line("Status", "Terminating" if obj.metadata.HasField("deletionTimestamp") else obj.status.phase or "Active")


def _config_map(obj: o.ConfigMap, now: float) -> Lines:
    if obj.immutable:
        yield _line("Immutable", "true")
    yield "Data:"
    for key in sorted(obj.data):
        value = obj.data[key]
        yield f"  {clean(key)}:"
        yield from (f"    {clean(line)}" for line in value[:MOST_VALUE].splitlines())
        if len(value) > MOST_VALUE:
            yield f"    ... ({len(value)} characters)"
    for key in sorted(obj.binaryData):
        yield f"  {clean(key)}: {len(obj.binaryData[key])} bytes"


def _secret(obj: o.Secret, now: float) -> Lines:
    yield _line("Type", obj.type)
    yield "Data:"  # never the values: terminals are looked at and recorded
    yield from (f"  {clean(key)}: {len(obj.data[key])} bytes" for key in sorted(obj.data))


# ---- storage ----
def _volume(obj: o.PersistentVolume, now: float) -> Lines:
    spec = obj.spec
    yield _line("StorageClass", spec.storageClassName or NONE)
    yield _line("Status", storage.phase(obj))
    for name, value in (("Reason", obj.status.reason), ("Message", obj.status.message)):
        if value:
            yield _line(name, value)
    yield _line("Claim", storage.bound_to(obj) or NONE)
    yield _line("Reclaim Policy", spec.persistentVolumeReclaimPolicy or "Retain")
    yield _line("Access Modes", storage.modes(spec.accessModes) or NONE)
    yield from _several("Capacity", {name: amount.text for name, amount in spec.capacity.items()})
    yield _line("Node", storage.node_of(obj) or "<any>")
    if spec.HasField("hostPath"):
        yield _line("Source", f"hostPath {spec.hostPath.path}")
    else:
        yield _line("Source", f"local {spec.local.path or '(a folder that the node chooses)'}")


def _claim(obj: o.PersistentVolumeClaim, now: float) -> Lines:
    spec = obj.spec
    yield _line("StorageClass", spec.storageClassName if spec.HasField("storageClassName") else storage.UNSET)
    yield _line("Status", storage.phase(obj))
    yield _line("Volume", spec.volumeName or NONE)
    asked = spec.resources.requests
    yield _line("Asks For", ", ".join(asked[name].text for name in sorted(asked)) or NONE)
    yield from _several("Capacity", {name: amount.text for name, amount in obj.status.capacity.items()})
    yield _line("Access Modes", storage.modes(obj.status.accessModes or spec.accessModes) or NONE)
    yield from _conditions(obj.status.conditions, now)


def _class(obj: o.StorageClass, now: float) -> Lines:
    yield _line("Default", "yes" if storage.is_default(obj) else "no")
    yield _line("Provisioner", obj.provisioner)
    yield _line("Reclaim Policy", obj.reclaimPolicy or "Delete")
    yield _line("Binding", obj.volumeBindingMode or "Immediate")


# ---- deaths ----
def _death(obj: o.Death, now: float) -> Lines:
    yield _line("Pod", f"{obj.pod.name} ({obj.pod.uid})")
    yield _line("Container", obj.container + (" (init)" if obj.initContainer else ""))
    yield _line("Attempt", obj.attempt)
    yield _line("Node", obj.node or NONE)
    yield _line("Image", obj.image)
    if obj.imageID:
        yield _line("Image ID", obj.imageID)
    how = f"signal {obj.signal}" if obj.signal else f"exit code {obj.exitCode}"
    yield _line("Ended", f"{obj.reason or 'Error'}, {how}")
    if obj.cause:
        yield _line("Cause", obj.cause)
    if obj.message:
        yield _line("Message", obj.message)
    for name, time in (("Started", obj.startedAt), ("Finished", obj.finishedAt), ("Last Healthy", obj.lastHealthyAt)):
        if time.seconds:
            yield _line(name, _since(time, now))
    yield from _consumed(obj.resources)
    if obj.changes:
        yield "Changes since it was last healthy:"
        yield from (f"  {clean(change)}" for change in obj.changes)
    if obj.probes:
        rows = [["Probe", "When", "Passed", "Took", "Message"]]
        for p in obj.probes:
            when = _since(p.at, now)
            rows.append([p.probe, when, "yes" if p.passed else "no", f"{p.milliseconds}ms", p.message])
        yield from _rows("Probes", rows)
    if obj.logTail:
        yield "Last Lines:"
        yield from (f"  {clean(line)}" for line in obj.logTail)


def _consumed(used: o.ResourceRecord) -> Lines:
    """What the container took, as far as it was measured."""
    if not used.ByteSize():
        return
    limit = f" of {size(used.memoryLimitBytes)}" if used.memoryLimitBytes else ""
    yield _line("Peak Memory", size(used.peakMemoryBytes) + limit)
    yield _line("CPU Time", f"{used.cpuSeconds:.1f}s")
    if used.throttledPeriods:
        yield _line("CPU Throttled", f"{used.throttledPeriods} of {used.periods} periods, {used.throttledSeconds:.1f}s")
    if used.oomKills:
        yield _line("Memory Kills", used.oomKills)
    if used.refusedForks:
        yield _line("Refused Forks", used.refusedForks)
    for pressure in used.pressure:
        stalled = f"some {pressure.someSeconds:.1f}s, full {pressure.fullSeconds:.1f}s"
        yield _line("Stalled", f"{pressure.resource}: {stalled}")


def _event(obj: o.Event, now: float) -> Lines:
    about = obj.involvedObject
    yield _line("Object", f"{about.kind}/{about.name}")
    yield _line("Type", obj.type)
    yield _line("Reason", obj.reason)
    yield _line("Message", obj.message)
    yield _line("Count", obj.count)
    yield _line("First Seen", _since(obj.firstTimestamp, now))
    yield _line("Last Seen", _since(obj.lastTimestamp, now))


def _events(events: Sequence[o.Event], now: float) -> Lines:
    if not events:
        yield _line("Events", NONE)
        return
    rows = [["Type", "Reason", "Age", "From", "Message"]]
    for event in events:
        when = age(now - event_time(event))
        if event.count > 1:
            when += f" (x{event.count} over {age(now - event.firstTimestamp.seconds)})"
        rows.append([event.type or "Normal", event.reason, when, event.source.component, event.message.strip()])
    yield from _rows("Events", rows)


_BODIES: Mapping[str, Callable[[Any, float], Lines]] = {
    "Pod": _pod,
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
    "Death": _death,
}
