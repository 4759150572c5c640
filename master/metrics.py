"""What Prometheus sees of a master, in the names of kube-state-metrics, the scheduler and the API server.

State is read from the store's view when it is scraped (custom collectors); only rates are counted as they happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.master.model import View
from shoal.proto import quantity
from shoal.proto.v1 import objects_pb2 as o

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
STATUSES = ("True", "False", "Unknown")
UNITS = {"cpu": "core", "memory": "byte", "ephemeral-storage": "byte", "pods": "integer"}
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
VICTIMS = (1, 2, 4, 8, 16, 32, 64)
LONG_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68)


class Sessions(Protocol):
    """What the dispatcher counts."""

    @property
    def accepted(self) -> int: ...
    @property
    def rejected(self) -> dict[str, int]: ...
    @property
    def reports(self) -> int: ...
    @property
    def refused_reports(self) -> int: ...


class Meters:
    """Everything that is counted as it happens; the loops and adapters call it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "apiserver_request", "Calls of the API by verb and status code.", ["verb", "code"], registry=registry
        )
        self._request_seconds = Histogram(
            "apiserver_request_duration_seconds",
            "Time to answer a call of the API; of a stream its whole life.",
            ["verb"],
            buckets=SHORT_SECONDS,
            registry=registry,
        )
        self._attempts = Counter(
            "scheduler_schedule_attempts", "Pods looked at by the scheduler, by result.", ["result"], registry=registry
        )
        self._attempt_seconds = Histogram(
            "scheduler_scheduling_attempt_duration_seconds",
            "Time to decide about one batch of pods.",
            ["result"],
            buckets=SHORT_SECONDS,
            registry=registry,
        )
        self._sli_seconds = Histogram(
            "scheduler_pod_scheduling_sli_duration_seconds",
            "From a pod's creation to its committed binding.",
            buckets=LONG_SECONDS,
            registry=registry,
        )
        self._pending = Gauge("scheduler_pending_pods", "Pods that wait for a node.", ["queue"], registry=registry)
        self._incoming = Counter(
            "scheduler_queue_incoming_pods",
            "Pods that got a turn, by the event that gave it to them.",
            ["queue", "event"],
            registry=registry,
        )
        self._preemptions = Counter("scheduler_preemption_attempts", "Pods that had others evicted.", registry=registry)
        self._victims = Histogram(
            "scheduler_preemption_victims", "Pods that one pod had evicted.", buckets=VICTIMS, registry=registry
        )
        self._reconciles = Counter(
            "controller_runtime_reconcile",
            "Calls of a controller, by result.",
            ["controller", "result"],
            registry=registry,
        )
        self._reconcile_seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Time of one call of a controller.",
            ["controller"],
            buckets=SHORT_SECONDS,
            registry=registry,
        )
        self._etcd_seconds = Histogram(
            "etcd_request_duration_seconds",
            "Time of one call of etcd, with its answer.",
            ["operation"],
            buckets=SHORT_SECONDS,
            registry=registry,
        )
        self._depth = Gauge("workqueue_depth", "Objects that wait for a controller.", registry=registry)

    # ---- the API ----
    def request(self, verb: str, code: str, seconds: float) -> None:
        self._requests.labels(verb, code).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def etcd(self, operation: str, seconds: float) -> None:
        self._etcd_seconds.labels(operation).observe(seconds)

    # ---- the scheduler (scheduling.Meter) ----
    def observe_schedule(self, result: str, pods: int, seconds: float) -> None:
        self._attempts.labels(result).inc(pods)
        self._attempt_seconds.labels(result).observe(seconds)

    def observe_bound(self, seconds: float) -> None:
        self._sli_seconds.observe(max(seconds, 0.0))

    def pending_pods(self, active: int, backoff: int, unschedulable: int, gated: int) -> None:
        numbers = {"active": active, "backoff": backoff, "unschedulable": unschedulable, "gated": gated}
        for queue, number in numbers.items():
            self._pending.labels(queue).set(number)

    def incoming(self, event: str, pods: int) -> None:
        self._incoming.labels("active", event).inc(pods)

    def preempted(self, victims: int) -> None:
        self._preemptions.inc()
        self._victims.observe(victims)

    # ---- the controllers (loop.LoopMeter) ----
    def reconciled(self, controller: str, result: str, seconds: float) -> None:
        self._reconciles.labels(controller, result).inc()
        self._reconcile_seconds.labels(controller).observe(seconds)

    def queue_depth(self, depth: int) -> None:
        self._depth.set(depth)


class StateCollector(Collector):
    """The objects of the cluster, as kube-state-metrics shows them."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        view = self._view()
        yield from pods(p for p in view.all("Pod") if isinstance(p, o.Pod))
        yield from nodes(n for n in view.all("Node") if isinstance(n, o.Node))
        yield from deployments(d for d in view.all("Deployment") if isinstance(d, o.Deployment))
        yield from replicasets(r for r in view.all("ReplicaSet") if isinstance(r, o.ReplicaSet))

    def describe(self) -> Iterable[Metric]:
        return ()


def pods(found: Iterable[o.Pod]) -> Iterator[Metric]:
    labels = ["namespace", "pod", "uid"]
    phase = GaugeMetricFamily("kube_pod_status_phase", "The pod's current phase.", labels=[*labels, "phase"])
    ready = GaugeMetricFamily("kube_pod_status_ready", "Whether the pod is ready.", labels=[*labels, "condition"])
    info = GaugeMetricFamily("kube_pod_info", "Where the pod is.", labels=[*labels, "node", "pod_ip", "host_ip"])
    restarts = CounterMetricFamily(
        "kube_pod_container_status_restarts", "Restarts of a container.", labels=[*labels, "container"]
    )
    for pod in found:
        own = [pod.metadata.namespace, pod.metadata.name, pod.metadata.uid]
        for name in PHASES:
            phase.add_metric([*own, name], float(name == (pod.status.phase or "Pending")))
        state = next((c.status for c in pod.status.conditions if c.type == "Ready"), "False")
        for status in STATUSES:
            ready.add_metric([*own, status.lower()], float(status == state))
        info.add_metric([*own, pod.spec.nodeName, pod.status.podIP, pod.status.hostIP], 1)
        for container in pod.status.containerStatuses:
            restarts.add_metric([*own, container.name], container.restartCount)
    return iter((phase, ready, info, restarts))


def nodes(found: Iterable[o.Node]) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "kube_node_info", "What the node is.", labels=["node", "kernel_version", "kubelet_version", "pod_cidr"]
    )
    condition = GaugeMetricFamily(
        "kube_node_status_condition", "The node's conditions.", labels=["node", "condition", "status"]
    )
    resource = ["node", "resource", "unit"]
    capacity = GaugeMetricFamily("kube_node_status_capacity", "What the node has.", labels=resource)
    allocatable = GaugeMetricFamily("kube_node_status_allocatable", "What the node's pods may use.", labels=resource)
    for node in found:
        name, system = node.metadata.name, node.status.nodeInfo
        info.add_metric([name, system.kernelVersion, system.kubeletVersion, node.spec.podCIDR], 1)
        for one in node.status.conditions:
            for status in STATUSES:
                condition.add_metric([name, one.type, status.lower()], float(one.status == status))
        for family, amounts in ((capacity, node.status.capacity), (allocatable, node.status.allocatable)):
            for what in sorted(amounts):
                family.add_metric([name, what.replace("-", "_"), UNITS.get(what, "integer")], amount(amounts[what]))
    return iter((info, condition, capacity, allocatable))


def amount(value: o.Quantity) -> float:
    """A quantity in its base unit; 0 for one that cannot be read."""
    try:
        return quantity.parse(value.text).nanos / 1e9
    except ValueError:
        return 0.0


def deployments(found: Iterable[o.Deployment]) -> Iterator[Metric]:
    labels = ["namespace", "deployment"]
    wanted = GaugeMetricFamily("kube_deployment_spec_replicas", "Replicas that are wanted.", labels=labels)
    columns = {
        "replicas": "replicas",
        "replicas_ready": "readyReplicas",
        "replicas_available": "availableReplicas",
        "replicas_unavailable": "unavailableReplicas",
        "replicas_updated": "updatedReplicas",
        "observed_generation": "observedGeneration",
    }
    families = {
        field: GaugeMetricFamily(f"kube_deployment_status_{name}", f"The deployment's {field}.", labels=labels)
        for name, field in columns.items()
    }
    for one in found:
        own = [one.metadata.namespace, one.metadata.name]
        wanted.add_metric(own, one.spec.replicas)
        for field, family in families.items():
            family.add_metric(own, getattr(one.status, field))
    return iter((wanted, *families.values()))


def replicasets(found: Iterable[o.ReplicaSet]) -> Iterator[Metric]:
    labels = ["namespace", "replicaset"]
    wanted = GaugeMetricFamily("kube_replicaset_spec_replicas", "Replicas that are wanted.", labels=labels)
    there = GaugeMetricFamily("kube_replicaset_status_replicas", "Replicas that are there.", labels=labels)
    ready = GaugeMetricFamily("kube_replicaset_status_ready_replicas", "Replicas that are ready.", labels=labels)
    for one in found:
        own = [one.metadata.namespace, one.metadata.name]
        wanted.add_metric(own, one.spec.replicas)
        there.add_metric(own, one.status.replicas)
        ready.add_metric(own, one.status.readyReplicas)
    return iter((wanted, there, ready))


class MasterState(Protocol):
    """What a master knows about itself (core.Master)."""

    @property
    def leads(self) -> bool: ...
    @property
    def session_count(self) -> int: ...
    @property
    def session_counters(self) -> Sessions: ...
    @property
    def store_counts(self) -> dict[str, int]: ...


class MasterCollector(Collector):
    """The master's own part."""

    def __init__(self, name: str, master: MasterState) -> None:
        self._name = name
        self._master = master

    def collect(self) -> Iterable[Metric]:
        master = self._master
        leads = GaugeMetricFamily("leader_election_master_status", "1 on the master that leads.", labels=["name"])
        leads.add_metric([self._name], float(master.leads))
        yield leads
        yield GaugeMetricFamily("shoal_agent_sessions", "Agents that are connected.", value=master.session_count)
        counters = master.session_counters
        yield CounterMetricFamily("shoal_agent_sessions_accepted", "Sessions begun.", value=counters.accepted)
        rejected = CounterMetricFamily("shoal_agent_sessions_rejected", "Sessions refused.", labels=["reason"])
        for reason in sorted(counters.rejected):
            rejected.add_metric([reason], counters.rejected[reason])
        yield rejected
        yield CounterMetricFamily("shoal_status_reports", "Status reports of agents.", value=counters.reports)
        yield CounterMetricFamily(
            "shoal_status_reports_refused", "Pods' statuses that were not taken.", value=counters.refused_reports
        )
        counts = master.store_counts
        yield CounterMetricFamily("shoal_store_groups", "Transactions committed.", value=counts["groups"])
        yield CounterMetricFamily("shoal_store_objects", "Objects committed.", value=counts["objects"])
        yield CounterMetricFamily("shoal_store_resends", "Transactions sent again.", value=counts["resends"])
        yield GaugeMetricFamily("shoal_store_waiting_changes", "Changes not yet answered.", value=counts["waiting"])

    def describe(self) -> Iterable[Metric]:
        return ()
