"""What an agent says about its node, turned into changes of the Node object (pure); and the pod ranges (pure)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from shoal.master.model import Create, Key, Modify, Object
from shoal.proto import names
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

NODE_PREFIX = 24  # bits of a node's pod range: 254 addresses
RESTRICTED = "node-restriction.kubernetes.io"
READY = "Ready"  # this condition has one writer, the node controller


class RangesUsedUp(Exception):
    """The cluster's pod range has no free node range."""


class Ranges:
    """Allots each node a range out of the cluster's; what is taken is what the Node objects say, and what has been
    allotted but is not committed yet."""

    def __init__(self, cluster_cidr: str) -> None:
        self._cluster = ipaddress.IPv4Network(cluster_cidr)
        if self._cluster.prefixlen > NODE_PREFIX:
            raise ValueError(
                f"the pod range {cluster_cidr} is smaller than one node's /{NODE_PREFIX}: choose a wider one"
            )
        self._reserved: dict[str, str] = {}

    def allot(self, node: str, nodes: Iterable[o.Node]) -> str:
        """The lowest free range, reserved for `node` until release(). Raises RangesUsedUp."""
        if node in self._reserved:
            return self._reserved[node]
        taken = {other.spec.podCIDR for other in nodes} | set(self._reserved.values())
        for candidate in self._cluster.subnets(new_prefix=NODE_PREFIX):
            if str(candidate) not in taken:
                self._reserved[node] = str(candidate)
                return str(candidate)
        raise RangesUsedUp(f"{self._cluster} has no free /{NODE_PREFIX} left: remove nodes that are gone")

    def release(self, node: str) -> None:
        """The reservation has become a Node object, or nothing."""
        self._reserved.pop(node, None)


def created(hello: s.Hello, pod_cidr: str, uid: str, now: float) -> Create:
    """A node that is seen for the first time."""
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name = hello.node
    node.metadata.uid = uid
    node.metadata.generation = 1
    node.metadata.creationTimestamp.CopyFrom(timestamp(now))
    node.metadata.labels.update(sound_labels(hello))
    node.spec.podCIDR = pod_cidr
    node.status.instanceID = hello.instance_id
    apply_report(node.status, hello.report)
    return Create(node)


def joined(hello: s.Hello, pod_cidr: str, uid: str) -> Modify:
    """A known node that comes back."""

    def edit(obj: Object) -> bool:
        assert isinstance(obj, o.Node)
        before = obj.SerializeToString(deterministic=True)
        obj.metadata.labels.update(sound_labels(hello))
        obj.status.instanceID = hello.instance_id
        if not obj.spec.podCIDR:
            obj.spec.podCIDR = pod_cidr
        apply_report(obj.status, hello.report)
        return obj.SerializeToString(deterministic=True) != before

    return Modify(Key("Node", "", hello.node), edit, uid=uid)


def sound_labels(hello: s.Hello) -> dict[str, str]:
    """The agent's labels without those that no object may have, and those that are people's alone: by them a node that
    somebody has broken into could draw pods to itself that are meant for others."""
    return {
        key: value
        for key, value in hello.labels.items()
        if names.not_label_key(key) is None and names.not_label_value(value) is None and not _is_restricted(key)
    }


def _is_restricted(key: str) -> bool:
    """Kubernetes' NodeRestriction: `node-restriction.kubernetes.io/...` and below."""
    prefix, slash, _ = key.rpartition("/")
    return bool(slash) and f".{prefix}".endswith(f".{RESTRICTED}")


def reported(node: str, report: s.NodeReport) -> Modify:
    """A change on a node that has a session."""

    def edit(obj: Object) -> bool:
        assert isinstance(obj, o.Node)
        before = obj.status.SerializeToString(deterministic=True)
        apply_report(obj.status, report)
        return obj.status.SerializeToString(deterministic=True) != before

    return Modify(Key("Node", "", node), edit)


def apply_report(status: o.NodeStatus, report: s.NodeReport) -> None:
    """Puts the agent's part into the status; the Ready condition stays as it is."""
    kept = [condition for condition in status.conditions if condition.type == READY]
    instance = status.instanceID
    fresh = o.NodeStatus(instanceID=instance, metricsPort=report.metrics_port)
    for name, amount in report.capacity.items():
        fresh.capacity[name].CopyFrom(amount)
    for name, amount in report.allocatable.items():
        fresh.allocatable[name].CopyFrom(amount)
    fresh.addresses.extend(report.addresses)
    fresh.images.extend(report.images)
    fresh.nodeInfo.CopyFrom(report.info)
    fresh.conditions.extend(kept)
    fresh.conditions.extend(condition for condition in report.conditions if condition.type != READY)
    status.CopyFrom(fresh)


def table_entry(node: o.Node) -> s.NodeAddressRange:
    """What other nodes need in order to route to this one."""
    address = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "")
    return s.NodeAddressRange(name=node.metadata.name, address=address, pod_cidr=node.spec.podCIDR)


def timestamp(now: float) -> o.Time:
    """Whole seconds, as Kubernetes writes them."""
    return o.Time(seconds=int(now))


class Table:
    """Every node's entry, made once and shared by all sessions: each COMPLETE carries the whole table."""

    def __init__(self, found: Iterable[o.Node]) -> None:
        self._entries = {node.metadata.name: table_entry(node) for node in found}
        self._ordered: list[s.NodeAddressRange] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, node: o.Node) -> bool:
        """True when its entry is new or another one now."""
        entry = table_entry(node)
        if self._entries.get(entry.name) == entry:
            return False
        self._entries[entry.name] = entry
        self._ordered = None
        return True

    def drop(self, name: str) -> bool:
        self._ordered = None
        return self._entries.pop(name, None) is not None

    def get(self, name: str) -> s.NodeAddressRange | None:
        return self._entries.get(name)

    def ordered(self) -> list[s.NodeAddressRange]:
        """By name."""
        if self._ordered is None:
            self._ordered = [self._entries[name] for name in sorted(self._entries)]
        return self._ordered
