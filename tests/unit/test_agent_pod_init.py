"""Init containers and sidecars: their order, their failures, and the end of the pod."""

from __future__ import annotations

import signal

import pytest

from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine
from shoal.agent.runtime.port import ContainerID, ContainerState, Exit
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, NODE, UID, Driver, deleted, make_pod


def pod_with(*inits: str, policy: str = "Always") -> o.Pod:
    """Init containers by name; one that ends in + is a sidecar."""
    pod = make_pod(policy=policy)
    for name in inits:
        container = pod.spec.initContainers.add(name=name.rstrip("+"), image="app:1")
        if name.endswith("+"):
            container.restartPolicy = "Always"
    return pod


def begun(*inits: str, policy: str = "Always") -> Driver:
    driver = Driver(pod_with(*inits, policy=policy))
    driver.begin()
    driver.settle()
    return driver


def started(driver: Driver) -> list[str]:
    return [step.spec.id.name for step in driver.given if isinstance(step, i.Start)]


def init_status(driver: Driver, name: str) -> o.ContainerStatus:
    return next(one for one in driver.status.initContainerStatuses if one.name == name)


def conditions(driver: Driver) -> dict[str, str]:
    return {c.type: c.status for c in driver.status.conditions}


@pytest.mark.parametrize("policy", ["Always", "Never"])
def test_b21_init_containers_run_one_after_the_other_before_the_app(policy: str) -> None:
    driver = begun("one", "two", policy=policy)
    assert started(driver) == ["one"]
    assert driver.status.phase == "Pending" and conditions(driver)["Initialized"] == "False"
    assert driver.container.state.waiting.reason == "PodInitializing"
    driver.exit(0, "one")
    driver.settle()
    assert started(driver) == ["one", "two"]
    assert init_status(driver, "one").ready and init_status(driver, "one").state.terminated.reason == "Completed"
    driver.exit(0, "two")
    driver.settle()
    assert started(driver) == ["one", "two", "app"]
    assert driver.status.phase == "Running" and conditions(driver)["Initialized"] == "True"
    assert conditions(driver)["Ready"] == "True"


def test_b23_an_init_container_that_fails_under_never_fails_the_pod() -> None:
    driver = begun("one", policy="Never")
    driver.exit(3, "one")
    driver.settle()
    assert driver.status.phase == "Failed" and started(driver) == ["one"]
    assert init_status(driver, "one").state.terminated.exitCode == 3
    assert driver.container.state.waiting.reason == "PodInitializing"


def test_b24_an_init_container_that_fails_under_always_is_tried_again_with_backoff() -> None:
    driver = begun("one")
    driver.exit(1, "one")
    driver.settle()
    driver.exit(1, "one")
    driver.settle()
    assert init_status(driver, "one").state.waiting.reason == "CrashLoopBackOff"
    assert init_status(driver, "one").lastState.terminated.exitCode == 1
    assert driver.timers["restart one"] - driver.now == 10
    driver.pass_time(10)
    driver.settle()
    assert init_status(driver, "one").restartCount == 2 and started(driver) == ["one"] * 3
    driver.exit(0, "one")
    driver.settle()
    assert driver.status.phase == "Running"


def test_a_sidecar_is_started_in_its_turn_and_does_not_hold_the_others_back() -> None:
    driver = begun("one", "proxy+", "two")
    driver.exit(0, "one")
    driver.settle()
    assert started(driver) == ["one", "proxy", "two"]
    driver.exit(0, "two")
    driver.settle()
    assert started(driver)[-1] == "app" and driver.status.phase == "Running"
    driver.exit(1, "proxy")
    driver.settle()
    assert started(driver)[-1] == "proxy" and init_status(driver, "proxy").restartCount == 1


def test_a_sidecar_s_startup_probe_holds_the_next_ones_back() -> None:
    pod = pod_with("proxy+")
    pod.spec.initContainers[0].startupProbe.tcpSocket.port.number = 80
    driver = Driver(pod)
    driver.begin()
    driver.settle()
    assert started(driver) == ["proxy"]
    driver.tell("startup", True, "proxy")
    driver.settle()
    assert started(driver) == ["proxy", "app"]


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (1, "Failed")])
def test_a_pod_ends_with_its_app_and_its_sidecars_are_ended_last_first(code: int, phase: str) -> None:
    driver = begun("a+", "b+", policy="Never")
    driver.exit(code)
    driver.settle()
    assert driver.status.phase == "Running"
    assert [(s.id.name, s.signal) for s in driver.given if isinstance(s, i.Signal)] == [("b", signal.SIGTERM)]
    driver.exit(143, "b")
    driver.settle()
    assert driver.last(i.Signal).id.name == "a"
    driver.exit(143, "a")
    driver.settle()
    assert driver.status.phase == phase
    assert started(driver) == ["a", "b", "app"], "a sidecar is not started again at the end"


def test_a_deleted_pod_ends_its_app_first_and_sidecars_get_a_moment_after_a_long_end() -> None:
    driver = begun("proxy+")
    driver.send(i.Assigned(deleted(driver.machine.pod, grace=10)))
    driver.settle()
    assert [s.id.name for s in driver.given if isinstance(s, i.Signal)] == ["app"]
    driver.pass_time(10)
    driver.settle()
    driver.exit(137)
    assert (driver.last(i.Signal).id.name, driver.last(i.Signal).signal) == ("proxy", signal.SIGTERM)
    driver.settle()
    driver.pass_time(1.9)
    assert driver.last(i.Signal).signal == signal.SIGTERM
    driver.pass_time(0.2)
    assert driver.last(i.Signal).signal == signal.SIGKILL
    driver.settle()
    driver.exit(137, "proxy")
    driver.settle()
    assert driver.ended


def again(driver: Driver, states: list[ContainerState], *, netns: str = "/run/net") -> Driver:
    fresh = Driver(driver.machine.pod)
    fresh.now = driver.now
    fresh.machine = PodMachine(driver.machine.record, NODE, saved=True)
    fresh.send(i.Begin(states, netns, "10.244.0.2" if netns else "", {"app": IMAGE, "one": IMAGE}))
    return fresh


def ran(name: str, at: float, code: int | None = None, attempt: int = 0) -> ContainerState:
    exit = None if code is None else Exit(code, 0, False, at)
    return ContainerState(ContainerID(UID, name, attempt), 7, at, 1, exit)


def test_b95_an_init_container_that_has_ended_is_not_run_again_by_the_next_agent() -> None:
    driver = begun("one")
    driver.exit(0, "one")
    driver.settle()
    fresh = again(driver, [ran("one", driver.now, 0), ran("app", driver.now)])
    fresh.settle()
    assert started(fresh) == [] and fresh.status == driver.status


def test_after_a_reboot_init_containers_run_again_before_the_app() -> None:
    driver = begun("one")
    driver.exit(0, "one")
    driver.settle()
    fresh = again(driver, [ran("one", driver.now, 0), ran("app", driver.now, 137)], netns="")
    fresh.settle()
    assert started(fresh) == ["one"]
    assert fresh.last(i.Start).spec.id.attempt == 1
    fresh.exit(0, "one")
    fresh.settle()
    assert started(fresh) == ["one", "app"]


def test_an_agent_that_dies_after_a_reboot_forgets_no_init_container() -> None:
    """The new sandbox comes after the disk knows that the old one is gone; the next agent finds it and starts over."""
    driver = begun("one")
    driver.exit(0, "one")
    driver.settle()
    states = [ran("one", driver.now, 0), ran("app", driver.now, 137)]
    second = again(driver, states, netns="")
    assert second.count(i.EnsureSandbox) == 0
    second.settle(keep=lambda step: not isinstance(step, i.Save))
    assert second.count(i.EnsureSandbox) == 1 and started(second) == []
    third = again(second, states)
    third.settle()
    assert started(third) == ["one"], "not the app"
    third.exit(0, "one")
    third.settle()
    assert started(third) == ["one", "app"]
    fourth = again(second, states, netns="")
    fourth.settle()
    assert started(fourth) == ["one"], "two reboots are as one"
