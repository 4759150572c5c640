"""The rows of `get`, kind by kind, with kubectl's columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.deploy.cli.printers import scheduling, status, storage
from shoal.deploy.cli.printers.text import NONE, age, clean, created_age, pairs
from shoal.proto.v1 import objects_pb2 as o

Row = list[str]


@dataclass(frozen=True, slots=True)
class Columns:
    """A kind's headings, those of -o wide, and how a row is made: (object, now) -> cells of both."""

    normal: Sequence[str]
    wide: Sequence[str]
    cells: Callable[[Any, float], Row]
    coloured: str = ""  # the heading whose cell is coloured


def headings(kind: str, *, wide: bool = False, namespace: bool = False, labels: bool = False) -> Row:
    """The heading row."""
    columns = COLUMNS[kind]
    row = [*(["NAMESPACE"] if namespace else []), *columns.normal, *(columns.wide if wide else ())]
    return [*row, "LABELS"] if labels else row


def row_of(
    obj: Any, now: float, *, wide: bool = False, namespace: bool = False, labels: bool = False, prefix: str = ""
) -> Row:
    """One object's cells; `prefix` goes before its name (deployment/web)."""
    columns = COLUMNS[obj.kind]
    cells = columns.cells(obj, now)
    if not wide:
        cells = cells[: len(columns.normal)]
    if prefix:
        at = list(columns.normal).index("NAME") if "NAME" in columns.normal else None
        if at is not None:
            cells[at] = prefix + cells[at]
    row = [*([obj.metadata.namespace or NONE] if namespace else []), *cells]
    return [clean(cell) for cell in ([*row, pairs(obj.metadata.labels)] if labels else row)]


def _pod(pod: o.Pod, now: float) -> Row:
    statuses = pod.status.containerStatuses
    ready = sum(1 for c in statuses if c.ready)
    count, last = status.restarts(pod)
    restarted = f"{count} ({age(now - last)} ago)" if count and last else str(count)
    return [
        pod.metadata.name,
        f"{ready}/{len(pod.spec.containers)}",
        status.pod_status(pod),
        restarted,
        created_age(pod, now),
        pod.status.podIP or NONE,
        pod.spec.nodeName or NONE,
    ]


def _template(spec: o.DeploymentSpec | o.ReplicaSetSpec) -> Row:
    containers = spec.template.spec.containers
    terms = [f"{key}={value}" for key, value in sorted(spec.selector.matchLabels.items())]
    terms += [
        f"{e.key} {e.operator.lower()} ({','.join(e.values)})" if e.values else f"{e.key} {e.operator}"
        for e in spec.selector.matchExpressions
    ]
    return [",".join(c.name for c in containers), ",".join(c.image for c in containers), ",".join(terms) or NONE]


def _deployment(obj: o.Deployment, now: float) -> Row:
    s = obj.status
    return [
        obj.metadata.name,
        f"{s.readyReplicas}/{obj.spec.replicas}",
        str(s.updatedReplicas),
        str(s.availableReplicas),
        created_age(obj, now),
        *_template(obj.spec),
    ]


def _replica_set(obj: o.ReplicaSet, now: float) -> Row:
    s = obj.status
    counts = [str(obj.spec.replicas), str(s.replicas), str(s.readyReplicas)]
    return [obj.metadata.name, *counts, created_age(obj, now), *_template(obj.spec)]


def _node(node: o.Node, now: float) -> Row:
    info = node.status.nodeInfo
    address = next((a.address for a in node.status.addresses if a.type == "InternalIP"), NONE)
    return [
        node.metadata.name,
        status.node_status(node),
        status.roles(node),
        created_age(node, now),
        info.kubeletVersion or NONE,
        address,
        info.osImage or NONE,
        info.kernelVersion or NONE,
        info.containerRuntimeVersion or NONE,
    ]


def _namespace(obj: o.Namespace, now: float) -> Row:
    word = "Terminating" if obj.metadata.HasField("deletionTimestamp") else obj.status.phase or "Active"
    return [obj.metadata.name, word, created_age(obj, now)]


def _config_map(obj: o.ConfigMap, now: float) -> Row:
    return [obj.metadata.name, str(len(obj.data) + len(obj.binaryData)), created_age(obj, now)]


def _secret(obj: o.Secret, now: float) -> Row:
    return [obj.metadata.name, obj.type, str(len(obj.data)), created_age(obj, now)]


def event_time(event: o.Event) -> int:
    """When it was last seen, in seconds since 1970."""
    return event.lastTimestamp.seconds or event.firstTimestamp.seconds or event.metadata.creationTimestamp.seconds


def _event(event: o.Event, now: float) -> Row:
    about = event.involvedObject
    seen = age(now - event_time(event))
    if event.count > 1:
        seen += f" (x{event.count} over {age(now - event.firstTimestamp.seconds)})"
    source = ", ".join(part for part in (event.source.component, event.source.host) if part) or NONE
    subject = f"{about.kind.lower()}/{about.name}"
    return [seen, event.type or "Normal", event.reason, subject, event.message.strip(), source, event.metadata.name]


def _death(death: o.Death, now: float) -> Row:
    ended = age(now - death.finishedAt.seconds) if death.finishedAt.seconds else created_age(death, now)
    exit_ = f"signal {death.signal}" if death.signal else str(death.exitCode)
    return [
        death.metadata.name,
        death.pod.name,
        death.container,
        death.reason,
        exit_,
        ended,
        death.node or NONE,
        death.cause or NONE,
    ]


_WORKLOAD = ("CONTAINERS", "IMAGES", "SELECTOR")
COLUMNS: Mapping[str, Columns] = {
    "Pod": Columns(("NAME", "READY", "STATUS", "RESTARTS", "AGE"), ("IP", "NODE"), _pod, "STATUS"),
    "Deployment": Columns(("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"), _WORKLOAD, _deployment),
    "ReplicaSet": Columns(("NAME", "DESIRED", "CURRENT", "READY", "AGE"), _WORKLOAD, _replica_set),
    "Node": Columns(
        ("NAME", "STATUS", "ROLES", "AGE", "VERSION"),
        ("INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"),
        _node,
        "STATUS",
    ),
    "Namespace": Columns(("NAME", "STATUS", "AGE"), (), _namespace, "STATUS"),
    "ConfigMap": Columns(("NAME", "DATA", "AGE"), (), _config_map),
    "Secret": Columns(("NAME", "TYPE", "DATA", "AGE"), (), _secret),
    "PersistentVolume": Columns(
        ("NAME", "CAPACITY", "ACCESS MODES", "RECLAIM POLICY", "STATUS", "CLAIM", "STORAGECLASS", "REASON", "AGE"),
        ("NODE", "VOLUMEMODE"),
        storage.volume_row,
        "STATUS",
    ),
    "PersistentVolumeClaim": Columns(
        ("NAME", "STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "STORAGECLASS", "AGE"),
        ("VOLUMEMODE",),
        storage.claim_row,
        "STATUS",
    ),
    "StorageClass": Columns(
        ("NAME", "PROVISIONER", "RECLAIMPOLICY", "VOLUMEBINDINGMODE", "ALLOWVOLUMEEXPANSION", "AGE"),
        (),
        storage.class_row,
    ),
    "PriorityClass": Columns(("NAME", "VALUE", "GLOBAL-DEFAULT", "AGE", "PREEMPTIONPOLICY"), (), scheduling.class_row),
    "PodDisruptionBudget": Columns(
        ("NAME", "MIN AVAILABLE", "MAX UNAVAILABLE", "ALLOWED DISRUPTIONS", "AGE"),
        ("HEALTHY", "DESIRED", "EXPECTED", "SELECTOR"),
        scheduling.budget_row,
    ),
    "PodGroup": Columns(
        ("NAME", "PHASE", "MINMEMBER", "RUNNING", "SUCCEEDED", "FAILED", "AGE"),
        ("SCHEDULED", "TOPOLOGYKEY", "OCCUPIED-BY"),
        scheduling.group_row,
        "PHASE",
    ),
    "Death": Columns(("NAME", "POD", "CONTAINER", "REASON", "EXIT", "AGE"), ("NODE", "CAUSE"), _death, "REASON"),
    "Event": Columns(("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), ("SOURCE", "NAME"), _event, "TYPE"),
}
