"""Events, with those of starts and ends, which are not stored: a pod's own status tells them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal.deploy.cli.printers.status import condition
from shoal.deploy.cli.printers.tables import event_time
from shoal.proto.v1 import objects_pb2 as o


def with_derived(events: Iterable[Any], pods: Iterable[Any]) -> list[o.Event]:
    """All events, the oldest first."""
    together = [*(event for pod in pods for event in derived(pod)), *events]  # within a second, starts come first
    return sorted(together, key=event_time)


def derived(pod: o.Pod) -> list[o.Event]:
    """What a pod's status says has happened: placed, started, ended."""
    found: list[o.Event] = []
    placed = condition(pod.status.conditions, "PodScheduled")
    if placed is not None and placed.status == "True" and placed.lastTransitionTime.seconds:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        text = f"Successfully assigned {name} to {pod.spec.nodeName}"
        found.append(_event(pod, "Scheduled", text, placed.lastTransitionTime.seconds, "scheduler"))
    for container in (*pod.status.initContainerStatuses, *pod.status.containerStatuses):
        for state in (container.lastState, container.state):
            found += _of_state(pod, container, state)
    if pod.metadata.HasField("deletionTimestamp") and pod.spec.nodeName:
        grace = pod.metadata.deletionGracePeriodSeconds
        text = f"Stopping all containers, within {grace}s"
        found.append(_event(pod, "Killing", text, pod.metadata.deletionTimestamp.seconds - grace, "agent"))
    return found


def _of_state(pod: o.Pod, container: o.ContainerStatus, state: o.ContainerState) -> list[o.Event]:
    found: list[o.Event] = []
    started = state.running.startedAt.seconds or state.terminated.startedAt.seconds
    if started:
        found.append(_event(pod, "Started", f"Started container {container.name}", started, "agent"))
    ended = state.terminated
    if ended.finishedAt.seconds:
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.exitCode}"
        text = f"Container {container.name} ended: {ended.reason or 'Error'}, {how}"
        kind = "Normal" if ended.exitCode == 0 and not ended.signal else "Warning"
        found.append(_event(pod, "Ended", text, ended.finishedAt.seconds, "agent", kind))
    return found


def _event(pod: o.Pod, reason: str, message: str, seconds: int, component: str, kind: str = "Normal") -> o.Event:
    event = o.Event(apiVersion="v1", kind="Event", reason=reason, message=message, type=kind, count=1)
    event.metadata.namespace = pod.metadata.namespace
    event.involvedObject.kind, event.involvedObject.name = "Pod", pod.metadata.name
    event.involvedObject.namespace, event.involvedObject.uid = pod.metadata.namespace, pod.metadata.uid
    event.source.component = component
    event.source.host = pod.spec.nodeName if component == "agent" else ""
    event.firstTimestamp.seconds = event.lastTimestamp.seconds = seconds
    return event
