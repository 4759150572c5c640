"""What a pod can learn of itself: fieldRef and resourceFieldRef (Kubernetes' downward API). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shoal.agent.pods.spec import NodeFacts, amounts
from shoal.proto import quantity
from shoal.proto.v1 import objects_pb2 as o

SERVICE_ACCOUNT = "default"  # there are no others yet
_KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]", re.DOTALL)
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_ESCAPES |= {"\\": "\\\\", '"': '\\"'}


class NoSuchField(Exception):
    """The path is none that a pod can ask for; the message says which there are."""


def field(pod: o.Pod, path: str, node: NodeFacts, pod_ip: str) -> str:
    """A field's value; a label or annotation that is not there is "". Raises NoSuchField."""
    meta = pod.metadata
    keyed = _KEYED.fullmatch(path)
    if keyed is not None:
        table = meta.labels if keyed[1] == "labels" else meta.annotations
        return table.get(keyed[2], "")
    known = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "metadata.labels": lines(meta.labels),
        "metadata.annotations": lines(meta.annotations),
        "spec.nodeName": pod.spec.nodeName or node.name,
        "spec.serviceAccountName": SERVICE_ACCOUNT,
        "status.hostIP": node.address,
        "status.hostIPs": node.address,
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
    }
    if path not in known:
        raise NoSuchField(f"{path!r} is not a field that a pod can ask for (there are: {', '.join(sorted(known))})")
    return known[path]


def lines(table: Mapping[str, str]) -> str:
    """`key="value"` by line, sorted, quoted as Go does (the kubelet's fieldpath.FormatMap)."""
    return "\n".join(f"{key}={quoted(table[key])}" for key in sorted(table))


def quoted(text: str) -> str:
    return '"' + "".join(_escaped(letter) for letter in text) + '"'


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def resource(pod: o.Pod, selector: o.ResourceFieldSelector, node: NodeFacts, own: o.Container | None = None) -> str:
    """A limit or request in units of the divisor, rounded up; a limit that is not set is what the node can give.
    `own` is meant when no container is named. Raises NoSuchField."""
    container = _container(pod, selector.containerName, own)
    which, _, name = selector.resource.partition(".")
    if which not in ("limits", "requests") or not name:
        raise NoSuchField(f"{selector.resource!r} is not a resource: write limits.cpu, requests.memory or the like")
    value = amounts(container, which, name)
    if not value and which == "limits":
        value = node.allocatable.get(name, 0)
    divisor = quantity.parse(selector.divisor.text or "1")
    unit = (divisor.milli() if name == "cpu" else divisor.whole()) or (1000 if name == "cpu" else 1)  # 0 means 1
    return str(-(-(value or 0) // unit))


def _container(pod: o.Pod, name: str, own: o.Container | None) -> o.Container:
    if not name and own is not None:
        return own
    for container in (*pod.spec.containers, *pod.spec.initContainers):
        if container.name == name:
            return container
    raise NoSuchField(f"the pod has no container {name!r}")
