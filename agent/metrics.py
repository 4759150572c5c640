"""The agent's metrics, named after the kubelet's and cAdvisor's; collected when asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.agent.core import Agent
from shoal.agent.pods.facts import ENDED
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.status import RUNNING_PHASE
from shoal.agent.pressure_watch import signal_values

START_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
CONTAINER_LABELS = ("namespace", "pod", "container")


class Histogram:
    """Counts by bucket, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(labels, buckets=buckets, sum_value=self._total)


class Durations:
    """The worker's and the prober's meter: how long pods, the steps of pods and probes took."""

    def __init__(self) -> None:
        self._starts = Histogram(START_BUCKETS_S)
        self._steps: dict[str, Histogram] = {}
        self._probes: dict[tuple[str, str, str], int] = {}  # by probe, how it asks, and result
        self._tries: dict[str, Histogram] = {}  # by how

    def observe_start(self, seconds: float) -> None:
        self._starts.observe(seconds)

    def observe_step(self, step: str, seconds: float) -> None:
        if step not in self._steps:
            self._steps[step] = Histogram(STEP_BUCKETS_S)
        self._steps[step].observe(seconds)

    def observe_probe(self, kind: str, how: str, result: str, seconds: float) -> None:
        self._probes[kind, how, result] = self._probes.get((kind, how, result), 0) + 1
        if how not in self._tries:
            self._tries[how] = Histogram(STEP_BUCKETS_S)
        self._tries[how].observe(seconds)

    def families(self) -> Iterator[Metric]:
        text = "Seconds from a pod's assignment to this node until it runs."
        starts = HistogramMetricFamily("kubelet_pod_start_duration_seconds", text)
        self._starts.add_to(starts, [])
        text = "Seconds that one step of a pod took, by the step's name."
        steps = HistogramMetricFamily("shoal_agent_step_duration_seconds", text, labels=("step",))
        for step, histogram in sorted(self._steps.items()):
            histogram.add_to(steps, [step])
        yield from (starts, steps)
        labels = ("probe", "how", "result")
        probes = CounterMetricFamily("shoal_agent_probes", "Probes' tries since the agent started.", labels=labels)
        for key, count in sorted(self._probes.items()):
            probes.add_metric(key, count)
        tries = HistogramMetricFamily("shoal_agent_probe_duration_seconds", "Seconds of one try.", labels=("how",))
        for how, histogram in sorted(self._tries.items()):
            histogram.add_to(tries, [how])
        yield from (probes, tries)


class AgentCollector(Collector):
    """Reads the agent's own data; `agent.usage` is what the runtime said last."""

    def __init__(self, agent: Agent, node: str, durations: Durations) -> None:
        self._agent = agent
        self._node = node
        self._durations = durations

    def collect(self) -> Iterator[Metric]:
        machines = list(self._agent.worker.machines.values())
        yield self._node_name()
        yield _gauge("kubelet_running_pods", "Pods that run on this node.", _running(machines))
        yield self._running_containers(machines)
        yield from self._durations.families()
        yield from self._counters()
        yield from self._pressure()
        yield from self._containers(machines)
        yield from self._usage()

    def _node_name(self) -> Metric:
        family = GaugeMetricFamily("kubelet_node_name", "The node's name; always 1.", labels=("node",))
        family.add_metric([self._node], 1)
        return family

    def _running_containers(self, machines: list[PodMachine]) -> Metric:
        text = "Containers on this node by state."
        family = GaugeMetricFamily("kubelet_running_containers", text, labels=("container_state",))
        states = {"running": 0, "exited": 0, "created": 0}
        for machine in machines:
            for facts in machine.containers():
                ended = facts.run is not None and facts.run.state == ENDED
                states["running" if facts.live else "exited" if ended else "created"] += 1
        for state, count in states.items():
            family.add_metric([state], count)
        return family

    def _counters(self) -> Iterator[Metric]:
        counts, session = self._agent.worker.counts, self._agent.session
        yield CounterMetricFamily(
            "kubelet_started_containers", "Containers started since the agent started.", value=counts.started
        )
        yield CounterMetricFamily(
            "kubelet_started_containers_errors", "Starts that failed since the agent started.", counts.start_errors
        )
        yield CounterMetricFamily(
            "shoal_agent_container_restarts", "Restarts since the agent started.", value=counts.restarts
        )
        text = "Whether the agent has a session with the leading master."
        yield _gauge("shoal_agent_session_connected", text, float(self._agent.connected))
        text = "Sessions with a master since the agent started."
        yield CounterMetricFamily("shoal_agent_sessions", text, value=session.sessions if session else 0)
        text = "Pod statuses that no master has acknowledged yet."
        yield _gauge("shoal_agent_statuses_unacknowledged", text, self._agent.outbox.unacknowledged)
        text = "Death certificates that no master has acknowledged yet."
        yield _gauge("shoal_agent_deaths_unacknowledged", text, self._agent.outbox.unacknowledged_deaths)
        text = "Death certificates that were given up because too many waited."
        yield CounterMetricFamily("shoal_agent_deaths_dropped", text, value=self._agent.outbox.dropped_deaths)
        yield _gauge("shoal_agent_steps_in_flight", "Steps in flight.", self._agent.worker.in_flight)
        yield _gauge("shoal_agent_tunnels", "Open log, exec and image streams.", self._agent.tunnels.count)

    def _pressure(self) -> Iterator[Metric]:
        watch = self._agent.pressure
        text = "Pods sent away since the agent started, by what the node was short of."
        evictions = CounterMetricFamily("kubelet_evictions", text, labels=("eviction_signal",))
        for signal, count in sorted(watch.evictions.items()):
            evictions.add_metric([signal], count)
        left = GaugeMetricFamily("shoal_agent_available", "What the node has left.", labels=("signal",))
        whole = GaugeMetricFamily("shoal_agent_capacity", "What the node has in all.", labels=("signal",))
        for signal, (available, capacity) in signal_values(watch.signals).items() if watch.signals else ():
            left.add_metric([signal], available)
            whole.add_metric([signal], capacity)
        text = "Bytes of unused images removed since the agent started."
        yield from (evictions, left, whole)
        yield CounterMetricFamily("shoal_agent_image_bytes_freed", text, value=watch.image_bytes)

    def _containers(self, machines: list[PodMachine]) -> Iterator[Metric]:
        text = "When the container's current run started, in seconds since 1970."
        starts = GaugeMetricFamily("container_start_time_seconds", text, labels=CONTAINER_LABELS)
        for machine in machines:
            meta = machine.pod.metadata
            for facts in machine.containers():
                if facts.live and facts.run is not None:
                    starts.add_metric([meta.namespace, meta.name, facts.spec.name], facts.run.started_at)
        yield starts

    def _usage(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily(
            "container_cpu_usage_seconds", "CPU time that the container has used.", labels=CONTAINER_LABELS
        )
        memory = GaugeMetricFamily(
            "container_memory_working_set_bytes", "Memory that cannot be reclaimed easily.", labels=CONTAINER_LABELS
        )
        processes = GaugeMetricFamily("container_processes", "Processes in the container.", labels=CONTAINER_LABELS)
        for id, usage in sorted(self._agent.usage.items(), key=lambda item: str(item[0])):
            machine = self._agent.worker.machines.get(id.pod_uid)
            facts = machine.container(id.name) if machine is not None else None
            if machine is None or facts is None or facts.run is None or facts.run.attempt != id.attempt:
                continue
            labels = [machine.pod.metadata.namespace, machine.pod.metadata.name, id.name]
            cpu.add_metric(labels, usage.cpu_seconds)
            memory.add_metric(labels, usage.memory_bytes)
            processes.add_metric(labels, usage.pids)
        yield from (cpu, memory, processes)


def _running(machines: list[PodMachine]) -> float:
    return float(sum(1 for machine in machines if machine.phase == RUNNING_PHASE))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
