"""What an agent says about its node, turned into changes of the Node object (pure); and the pod ranges (pure)."""

from __future__ import annotations

import heapq
import ipaddress
from collections import Counter
from collections.abc import Iterable

from shoal.master.model import Create, Key, Modify, Object
from shoal.proto import names
from shoal.proto.rules.resources import RESOURCES, not_extended
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

NODE_PREFIX = 24  # bits of a node's pod range: 254 addresses
RESTRICTED = "node-restriction.kubernetes.io"
DEVICES = 64  # kinds of extended resources that one node may have: the scheduler keeps a row for each name
OWN_RESOURCES = (*RESOURCES, "pods")
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
        self._first = int(self._cluster.network_address)
        self._count = 1 << (NODE_PREFIX - self._cluster.prefixlen)
        self._held: dict[str, int] = {}  # by node, the index of its range
        self._holders: Counter[int] = Counter()
        self._freed: list[int] = []  # a heap
        self._next = 0  # all from here on are free, or known to be held

    def learn(self, node: str, pod_cidr: str) -> None:
        """What a Node object says."""
        index = self._index(pod_cidr)
        if self._held.get(node) == index:
            return
        self.release(node)
        if index is not None:
            self._held[node] = index
            self._holders[index] += 1

    def allot(self, node: str) -> str:
        """The lowest free range, this node's until release(). Raises RangesUsedUp."""
        if node not in self._held:
            self._held[node] = index = self._lowest()
            self._holders[index] += 1
        at = self._first + (self._held[node] << (32 - NODE_PREFIX))
        return f"{ipaddress.IPv4Address(at)}/{NODE_PREFIX}"

    def release(self, node: str) -> None:
        """The node, or its wish to join, has come to nothing."""
        index = self._held.pop(node, None)
        if index is None:
            return
        self._holders[index] -= 1
        if not self._holders[index]:
            del self._holders[index]
            heapq.heappush(self._freed, index)

    def _lowest(self) -> int:
        while self._freed:
            index = heapq.heappop(self._freed)
            if not self._holders[index] and index < self._next:
                return index
        while self._next in self._holders:
            self._next += 1
        if self._next >= self._count:
            raise RangesUsedUp(f"{self._cluster} has no free /{NODE_PREFIX} left: remove nodes that are gone")
        self._next += 1
        return self._next - 1

    def _index(self, pod_cidr: str) -> int | None:
        """None for what is no range of this cluster's."""
        try:
            network = ipaddress.IPv4Network(pod_cidr)
        except ValueError:
            return None
        if network.prefixlen != NODE_PREFIX or not network.subnet_of(self._cluster):
            return None
        return (int(network.network_address) - self._first) >> (32 - NODE_PREFIX)


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
    for name in sound_resources(report.capacity):
        fresh.capacity[name].CopyFrom(report.capacity[name])
    for name in sound_resources(report.allocatable):
        fresh.allocatable[name].CopyFrom(report.allocatable[name])
    fresh.addresses.extend(report.addresses)
    fresh.images.extend(report.images)
    fresh.nodeInfo.CopyFrom(report.info)
    fresh.conditions.extend(kept)
    fresh.conditions.extend(condition for condition in report.conditions if condition.type != READY)
    status.CopyFrom(fresh)


def sound_resources(amounts: Iterable[str]) -> list[str]:
    """The names that a node may have: its own, and extended ones that pods could ask for, the first of them by name."""
    found = sorted(amounts)
    extended = [name for name in found if name not in OWN_RESOURCES and not_extended(name) is None]
    return [*(name for name in found if name in OWN_RESOURCES), *extended[:DEVICES]]


def table_entry(node: o.Node) -> s.NodeAddressRange:
    """What other nodes need in order to route to this one."""
    address = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "")
    return s.NodeAddressRange(name=node.metadata.name, address=address, pod_cidr=node.spec.podCIDR)


def timestamp(now: float) -> o.Time:
    """Whole seconds, as Kubernetes writes them."""
    return o.Time(seconds=int(now))
