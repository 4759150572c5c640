"""Judges the death certificates that agents hand in: which are kept, and in which form (pure).

A certificate is about a pod of that agent's node. It outlives its pod; the deaths controller bounds and expires them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from shoal.master.dispatcher.nodes import timestamp
from shoal.master.model import Change, Create, View
from shoal.proto import known, names
from shoal.proto.v1 import objects_pb2 as o

DEATH_BYTES = 64 << 10
POD_LABEL = "shoal.dev/pod-uid"  # which the label index answers
UIDS = uuid.UUID("3f0e1f6a-5c0d-5c0b-9a37-0d6d4a3f7b52")  # the name space of certificates' uids


@dataclass(frozen=True, slots=True)
class Verdict:
    """`change` keeps it; `refused` says why it is not taken. Neither: it is there already, or its pod is gone."""

    change: Change | None = None
    refused: str = ""


def judge(view: View, node: str, death: o.Death, now: float) -> Verdict:
    """What a certificate of `node` leads to; the pod is found by uid."""
    pod = view.by_uid(death.pod.uid) if death.pod.uid else None
    if not isinstance(pod, o.Pod):
        return Verdict()
    name, namespace = death.metadata.name, pod.metadata.namespace
    what = f"death {name[:100]!r} of pod {namespace}/{pod.metadata.name}"
    if pod.spec.nodeName != node:
        return Verdict(refused=f"{what}: the pod belongs to node {pod.spec.nodeName or '(none)'}, not to {node}")
    if names.not_dns_subdomain(name) is not None or not _names(name, pod):
        return Verdict(refused=f"{what}: its name must be <pod>.<container>.<attempt>.<start of the pod's uid>")
    closing = view.get("Namespace", "", namespace)
    if closing is not None and closing.metadata.HasField("deletionTimestamp"):
        return Verdict()  # it would hold its namespace back
    if view.get("Death", namespace, name) is not None:
        return Verdict()
    kept = certificate(pod, node, death, now)
    if kept.ByteSize() > DEATH_BYTES:
        return Verdict(refused=f"{what}: it has {kept.ByteSize()} bytes, at most {DEATH_BYTES} are kept")
    return Verdict(Create(kept))


def _names(name: str, pod: o.Pod) -> bool:
    rest, _, start = name.rpartition(".")
    return bool(start) and rest.rpartition(".")[2].isdecimal() and pod.metadata.uid.startswith(start)


def certificate(pod: o.Pod, node: str, death: o.Death, now: float) -> o.Death:
    """The agent's words under the master's own head; without the last lines when they make it too large."""
    kept = o.Death()
    kept.CopyFrom(death)
    kept.apiVersion, kept.kind, kept.node = known.API_VERSIONS["Death"], "Death", node
    uid = str(uuid.uuid5(UIDS, f"{pod.metadata.uid}/{death.metadata.name}"))
    meta = o.ObjectMeta(name=death.metadata.name, namespace=pod.metadata.namespace, uid=uid, generation=1)
    meta.creationTimestamp.CopyFrom(timestamp(now))
    meta.labels[POD_LABEL] = pod.metadata.uid
    kept.metadata.CopyFrom(meta)
    about = pod.metadata
    kept.pod.CopyFrom(
        o.ObjectReference(apiVersion="v1", kind="Pod", name=about.name, namespace=about.namespace, uid=about.uid)
    )
    if kept.ByteSize() > DEATH_BYTES:
        del kept.logTail[:]
    return kept
