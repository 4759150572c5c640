"""An agent's report of a pod, and what the scheduler has written there."""

from __future__ import annotations

from shoal.master.dispatcher.statuses import merged
from shoal.proto.v1 import objects_pb2 as o


def status(**conditions: str) -> o.PodStatus:
    """TYPE=status, in this order."""
    made = o.PodStatus(phase="Running")
    for kind, value in conditions.items():
        made.conditions.add(type=kind, status=value)
    return made


def types(one: o.PodStatus) -> list[str]:
    return [condition.type for condition in one.conditions]


def test_the_schedulers_conditions_outlive_reports_that_lack_them() -> None:
    old = status(PodScheduled="True", Ready="True", DisruptionTarget="True")
    found = merged(old, status(PodScheduled="True", Ready="False"))
    assert types(found) == ["DisruptionTarget", "PodScheduled", "Ready"]
    assert merged(found, status(PodScheduled="True", Ready="False")) == found, "the same report again changes nothing"
    assert types(merged(old, status(Ready="False"))) == ["PodScheduled", "DisruptionTarget", "Ready"]


def test_other_conditions_are_the_agents() -> None:
    assert types(merged(status(Ready="True", Initialized="True"), status(Ready="False"))) == ["Ready"]
    assert merged(status(), status(Ready="True")) == status(Ready="True")
