"""The rows of PriorityClasses, PodDisruptionBudgets and PodGroups, with kubectl's columns."""

from __future__ import annotations

from shoal.deploy.cli.printers.placement import selector_text
from shoal.deploy.cli.printers.text import NONE, created_age
from shoal.proto.v1 import objects_pb2 as o

NOT_SET = "N/A"


def class_row(obj: o.PriorityClass, now: float) -> list[str]:
    default = "true" if obj.globalDefault else "false"
    return [obj.metadata.name, str(obj.value), default, created_age(obj, now), obj.preemptionPolicy]


def budget_row(obj: o.PodDisruptionBudget, now: float) -> list[str]:
    spec, status = obj.spec, obj.status
    least = number(spec.minAvailable) if spec.HasField("minAvailable") else NOT_SET
    most = number(spec.maxUnavailable) if spec.HasField("maxUnavailable") else NOT_SET
    wide = [
        str(status.currentHealthy),
        str(status.desiredHealthy),
        str(status.expectedPods),
        selector_text(spec.selector, spec.HasField("selector")),
    ]
    return [obj.metadata.name, least, most, str(status.disruptionsAllowed), created_age(obj, now), *wide]


def group_row(obj: o.PodGroup, now: float) -> list[str]:
    spec, status = obj.spec, obj.status
    counts = [str(count) for count in (spec.minMember, status.running, status.succeeded, status.failed)]
    wide = [str(status.scheduled), spec.topologyKey or NONE, status.occupiedBy or NONE]
    return [obj.metadata.name, status.phase or "Pending", *counts, created_age(obj, now), *wide]


def number(value: o.IntOrString) -> str:
    return value.text if value.WhichOneof("value") == "text" else str(value.number)
