"""The text of `describe` for PriorityClasses, PodDisruptionBudgets and PodGroups."""

from __future__ import annotations

from shoal.deploy.cli.printers.lines import Lines, line, several
from shoal.deploy.cli.printers.placement import selector_text
from shoal.deploy.cli.printers.pods import conditions
from shoal.deploy.cli.printers.scheduling import number
from shoal.deploy.cli.printers.text import NONE
from shoal.proto.v1 import objects_pb2 as o


def class_lines(obj: o.PriorityClass, now: float) -> Lines:
    yield line("Value", obj.value)
    yield line("GlobalDefault", "true" if obj.globalDefault else "false")
    yield line("Preemption", obj.preemptionPolicy)
    yield line("Description", obj.description or NONE)


def budget_lines(obj: o.PodDisruptionBudget, now: float) -> Lines:
    spec, status = obj.spec, obj.status
    if spec.HasField("minAvailable"):
        yield line("Min Available", number(spec.minAvailable))
    if spec.HasField("maxUnavailable"):
        yield line("Max Unavailable", number(spec.maxUnavailable))
    yield line("Selector", selector_text(spec.selector, spec.HasField("selector")))
    yield line("Unhealthy Pods", spec.unhealthyPodEvictionPolicy or "IfHealthyBudget")
    yield line("Allowed", f"{status.disruptionsAllowed} disruptions")
    yield line("Healthy", f"{status.currentHealthy} of {status.expectedPods} pods, {status.desiredHealthy} desired")
    yield from conditions(status.conditions, now)


def group_lines(obj: o.PodGroup, now: float) -> Lines:
    spec, status = obj.spec, obj.status
    yield line("Phase", status.phase or "Pending")
    yield line("Min Member", spec.minMember)
    if spec.HasField("scheduleTimeoutSeconds"):
        yield line("Timeout", f"{spec.scheduleTimeoutSeconds}s")
    yield line("Topology Key", spec.topologyKey or NONE)
    yield line("Occupied By", status.occupiedBy or NONE)
    counts = {name: str(getattr(status, name)) for name in ("scheduled", "running", "succeeded", "failed")}
    yield from several("Members", counts)
