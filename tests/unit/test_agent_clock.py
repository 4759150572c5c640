"""The wall clock jumps, by a day forward or back: running pods do not notice, and no wait grows or is cut short."""

from __future__ import annotations

import signal

import pytest

from shoal.agent.pods import instructions as i
from shoal.agent.pods.probing import READINESS
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import Driver, deleted, make_pod, running

DAY = 86_400.0
JUMPS = [DAY, -DAY]


def jump(driver: Driver, seconds: float) -> None:
    """Timers count on: they are of another clock."""
    driver.now += seconds
    driver.timers = {name: at + seconds for name, at in driver.timers.items()}


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_running_pod_and_its_deadline_do_not_notice(seconds: float) -> None:
    pod = make_pod()
    pod.spec.activeDeadlineSeconds = 100
    pod.spec.containers[0].readinessProbe.tcpSocket.port.number = 80
    driver = running(pod)
    driver.pass_time(50)
    jump(driver, seconds)
    driver.tell(READINESS, True)
    driver.send(i.ObjectsChanged())
    driver.settle()
    driver.pass_time(49)
    driver.settle()
    assert driver.count(i.Signal) == 0 and driver.status.phase == "Running"
    driver.pass_time(2)
    driver.settle()
    assert driver.last(i.Signal).signal == signal.SIGTERM


@pytest.mark.parametrize("seconds", JUMPS)
def test_the_grace_of_a_pod_that_ends_is_what_it_was(seconds: float) -> None:
    driver = running(make_pod(grace=20))
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle()
    driver.pass_time(5)
    jump(driver, seconds)
    driver.send(i.ObjectsChanged())
    driver.settle()
    assert [step.signal for step in driver.given if isinstance(step, i.Signal)] == [signal.SIGTERM]
    driver.pass_time(20)
    driver.settle()
    assert driver.last(i.Signal).signal == signal.SIGKILL


@pytest.mark.parametrize("seconds", JUMPS)
def test_a_restart_waits_no_longer_and_no_shorter(seconds: float) -> None:
    driver = running()
    for _ in range(3):
        driver.exit(1)
        driver.settle()
        driver.pass_time(400)
        driver.settle()
    driver.exit(1)
    driver.settle()
    starts, wait = driver.count(i.Start), driver.timers["restart app"] - driver.now
    assert wait > 1
    jump(driver, seconds)
    driver.send(i.ObjectsChanged())
    driver.settle()
    driver.pass_time(wait - 1)
    driver.settle()
    assert driver.count(i.Start) == starts
    driver.pass_time(2)
    driver.settle()
    assert driver.count(i.Start) == starts + 1


def test_a_clock_that_jumps_back_over_a_restart_of_the_agent_does_not_lengthen_the_deadline() -> None:
    pod = o.Pod()
    pod.CopyFrom(make_pod())
    pod.spec.activeDeadlineSeconds = 100
    driver = Driver(pod)
    driver.now -= DAY
    driver.begin()
    driver.settle()
    driver.pass_time(101)
    driver.settle()
    assert driver.last(i.Signal).signal == signal.SIGTERM
