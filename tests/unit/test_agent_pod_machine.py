"""One pod's life: which instructions follow from which events, and what the status says."""

from __future__ import annotations

import signal

import pytest

from shoal.agent.images.port import Image, ImageConfig
from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine, stop_signal
from shoal.agent.pods.spec import sandbox_spec
from shoal.agent.runtime.port import ContainerID, ContainerState, Exit, Sandbox
from shoal.agent.state import PodRecord
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, NODE, NOW, UID, Driver, deleted, make_pod, record_of, running


def kinds(instructions: list[i.Instruction]) -> list[str]:
    return [type(instruction).__name__ for instruction in instructions]


def test_b39_a_new_pod_is_saved_and_gets_sandbox_and_images_at_once() -> None:
    driver = Driver()
    pod = driver.machine.pod
    out = driver.begin()
    assert out[:3] == [
        i.Save(record_of(pod)),
        i.EnsureSandbox(sandbox_spec(pod, NODE)),
        i.HoldImage("app", "app:1", f"{UID}/app"),
    ]
    assert kinds(out[3:]) == ["Publish"]
    assert driver.status.phase == "Pending"
    assert driver.container.state.waiting.reason == "ContainerCreating"


def test_the_first_start_waits_for_record_sandbox_address_and_image() -> None:
    driver = Driver()
    driver.begin()
    assert kinds(driver.done(i.EnsureSandbox, Sandbox(UID, "/run/net"))) == ["Attach"]
    assert kinds(driver.done(i.HoldImage, IMAGE)) == ["Publish"]  # the image's id
    assert kinds(driver.done(i.Attach, "10.244.0.2")) == ["Publish"]  # the address
    assert kinds(driver.done(i.Save)) == ["Start"]
    start = driver.last(i.Start)
    assert start.spec.id == ContainerID(UID, "app", 0)
    assert "10.244.0.2\tweb" in start.spec.files["/etc/hosts"]


def test_b41_a_running_pod_has_addresses_and_all_conditions() -> None:
    driver = running()
    status = driver.status
    assert (status.hostIP, status.podIP, status.podIPs[0].ip) == ("10.0.0.1", "10.244.0.2", "10.244.0.2")
    assert {c.type: c.status for c in status.conditions} == dict.fromkeys(
        ("PodScheduled", "Initialized", "ContainersReady", "Ready"), "True"
    )
    assert driver.container.ready and driver.container.started and driver.container.restartCount == 0
    assert driver.container.containerID == f"shoal://{UID}/app/0"
    assert driver.container.imageID == IMAGE.id
    assert status.observedGeneration == 1
    assert not driver.open and not driver.timers


@pytest.mark.parametrize(
    ("policy", "code", "phase", "restarts"),
    [
        ("Always", 0, "Running", True),
        ("Always", 1, "Running", True),
        ("OnFailure", 0, "Succeeded", False),
        ("OnFailure", 3, "Running", True),
        ("Never", 0, "Succeeded", False),
        ("Never", 3, "Failed", False),
    ],
)
def test_b10_phase_and_restarts_follow_the_policy(policy: str, code: int, phase: str, restarts: bool) -> None:
    driver = running(make_pod(policy=policy))
    out = driver.exit(code)
    assert ("Start" in kinds(out)) is restarts  # the first restart is at once
    driver.settle()
    assert driver.status.phase == phase
    assert driver.container.restartCount == (1 if restarts else 0)
    assert driver.container.ready is restarts
    last = driver.container.lastState.terminated if restarts else driver.container.state.terminated
    assert (last.exitCode, last.reason) == (code, "Completed" if code == 0 else "Error")


def test_b10_a_pod_of_two_ends_when_both_have() -> None:
    driver = running(make_pod(policy="Never", containers=("a", "b")))
    driver.exit(0, "a")
    assert driver.status.phase == "Running"
    assert driver.status.containerStatuses[0].state.terminated.reason == "Completed"
    assert driver.status.containerStatuses[1].state.HasField("running")
    driver.exit(1, "b")
    assert driver.status.phase == "Failed"


def test_b16_signal_oom_and_the_run_before_are_kept() -> None:
    driver = running()
    driver.exit(137, signal=9, oom=True)
    driver.settle()
    last = driver.container.lastState.terminated
    assert (last.reason, last.exitCode, last.signal) == ("OOMKilled", 137, 9)
    assert last.containerID == f"shoal://{UID}/app/0"
    driver.exit(143, signal=15)
    last = driver.container.lastState.terminated
    assert (last.reason, last.exitCode, last.signal) == ("Error", 143, 15)


def test_crash_loops_wait_longer_each_time_and_say_until_when() -> None:
    driver = running()
    waits = []
    for _ in range(8):
        driver.exit(1)
        if "restart app" in driver.timers:
            assert driver.container.state.waiting.reason == "CrashLoopBackOff"
            waits.append(driver.timers["restart app"] - driver.now)
            assert f"back-off {waits[-1]:.0f}s restarting failed container=app" in (
                driver.container.state.waiting.message
            )
            driver.pass_time(waits[-1])
        driver.settle()
        assert driver.container.state.HasField("running")
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    assert driver.container.restartCount == 8


def test_ten_minutes_of_running_end_a_crash_loop() -> None:
    driver = running()
    for _ in range(3):
        driver.exit(1)
        driver.pass_time(60)
        driver.settle()
    driver.pass_time(600)
    assert "Start" in kinds(driver.exit(1))


def test_only_the_last_two_runs_stay_on_the_disk() -> None:
    driver = running()
    for _ in range(3):
        driver.exit(1)
        driver.pass_time(60)
        driver.settle()
    removed = [step.id.attempt for step in driver.given if isinstance(step, i.RemoveContainer)]
    assert removed == [0, 1]


def test_an_image_with_no_command_waits_with_the_reason() -> None:
    bare = Image("sha256:1", "sha256:2", ("x",), 1, ("/l",), ImageConfig())
    driver = Driver(images={"app:1": bare})
    driver.begin()
    driver.settle()
    assert driver.container.state.waiting.reason == "CreateContainerError"
    assert "neither ENTRYPOINT nor CMD" in driver.container.state.waiting.message
    assert driver.count(i.Start) == 0


def test_a_start_error_is_a_terminated_run_and_obeys_the_policy() -> None:
    driver = Driver(make_pod(policy="Never"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    driver.failed(i.Start, "StartError", "exec /nope: no such file", exit_code=127, retryable=False)
    assert driver.status.phase == "Failed"
    ended = driver.container.state.terminated
    assert (ended.reason, ended.exitCode, ended.message) == ("StartError", 127, "exec /nope: no such file")

    driver = Driver()
    driver.begin()
    for _ in range(2):
        driver.settle(keep=lambda step: isinstance(step, i.Start))
        driver.failed(i.Start, "StartError", "exec /nope: no such file", exit_code=127, retryable=False)
    assert driver.container.state.waiting.reason == "CrashLoopBackOff"
    assert "no such file" in driver.container.state.waiting.message
    assert driver.container.lastState.terminated.exitCode == 127
    assert driver.container.restartCount == 1


def test_b50_a_configuration_error_waits_even_under_never_and_is_no_restart() -> None:
    def refuse() -> None:
        driver.settle(keep=lambda step: isinstance(step, i.Start))
        assert driver.last(i.Start).spec.id.attempt == 0
        driver.failed(i.Start, "CreateContainerConfigError", "image runs as root", retryable=False)

    driver = Driver(make_pod(policy="Never"))
    driver.begin()
    for _ in range(3):
        refuse()
        driver.pass_time(300)
    for status, _ in driver.statuses[3:]:
        waiting = status.containerStatuses[0].state.waiting
        assert (waiting.reason, waiting.message) == ("CreateContainerConfigError", "image runs as root")
        assert status.phase == "Pending" and status.containerStatuses[0].restartCount == 0
    driver.settle()
    assert driver.status.phase == "Running"


def test_b35_a_configuration_error_after_a_run_takes_no_restart_back() -> None:
    driver = running()
    driver.exit(1)
    driver.settle()
    driver.exit(1)
    driver.pass_time(10)
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    driver.failed(i.Start, "CreateContainerConfigError", "no", retryable=False)
    driver.pass_time(300)
    driver.settle()
    assert driver.container.restartCount == 2
    counts = [status.containerStatuses[0].restartCount for status, _ in driver.statuses]
    assert counts == sorted(counts)


@pytest.mark.parametrize("kind", [i.EnsureSandbox, i.Attach, i.Save, i.HoldImage, i.Start])
def test_a_step_that_fails_is_explained_and_tried_again(kind: type[i.Step]) -> None:
    driver = Driver()
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, kind))
    driver.failed(kind, "NetworkNotReady", "no range yet")
    assert driver.container.state.waiting.message == "no range yet"
    assert not driver.open
    driver.pass_time(1)
    assert [type(step) for step in driver.open] == [kind]
    driver.settle()
    assert driver.status.phase == "Running"


def test_an_exit_that_overtakes_the_answer_of_its_start_is_not_undone() -> None:
    driver = Driver(make_pod(policy="Never"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    driver.exit(0)
    driver.settle()
    assert driver.status.phase == "Succeeded"
    driver.exit(0)  # and it comes twice
    assert driver.status.phase == "Succeeded"


def test_b39_a_graceful_end_saves_signals_waits_kills_frees_and_reports() -> None:
    driver = running()
    out = driver.send(i.Assigned(deleted(driver.machine.pod, grace=7)))
    assert kinds(out) == ["Save", "Publish"] and not driver.container.ready
    out = driver.done(i.Save)
    assert out == [i.Signal(ContainerID(UID, "app", 0), signal.SIGTERM), i.SetTimer("grace app", 7)]
    driver.settle()
    driver.pass_time(6.9)
    assert driver.last(i.Signal).signal == signal.SIGTERM
    driver.pass_time(0.2)
    assert driver.last(i.Signal).signal == signal.SIGKILL
    driver.settle()
    out = driver.exit(137, signal=9)
    assert kinds(out) == ["Save", "Bury", "Publish"]  # its status does not wait for its death certificate
    assert driver.status.phase == "Failed" and not any(ended for _, ended in driver.statuses)
    assert kinds(driver.done(i.Save)) == []
    driver.done(i.Bury)
    assert kinds(driver.done(i.Save)) == ["Detach"]
    assert kinds(driver.done(i.Detach)) == ["RemoveSandbox"]
    assert kinds(driver.done(i.RemoveSandbox)) == ["Publish"]
    assert driver.ended
    assert driver.send(i.Removed()) == [i.Forget()]
    assert driver.send(i.ImagesChanged()) == []


def test_a_process_that_survives_kill_is_killed_again() -> None:
    driver = running()
    driver.send(i.Assigned(deleted(driver.machine.pod, grace=0)))
    driver.settle()
    assert driver.last(i.Signal).signal == signal.SIGKILL
    kills = driver.count(i.Signal)
    driver.pass_time(5.1)
    driver.settle()
    assert driver.count(i.Signal) == kills + 1


def test_nothing_is_freed_under_a_step_in_flight() -> None:
    for kind in (i.EnsureSandbox, i.Attach, i.HoldImage, i.Start):
        driver = Driver()
        driver.begin()
        driver.settle(keep=lambda step, k=kind: isinstance(step, k))  # type: ignore[misc]
        driver.send(i.Assigned(deleted(driver.machine.pod)))
        driver.settle(keep=lambda step, k=kind: isinstance(step, k))  # type: ignore[misc]
        assert driver.count(i.Detach) == 0 and driver.count(i.RemoveSandbox) == 0
        driver.failed(kind, "NetworkNotReady")
        driver.settle()
        assert driver.ended


def test_a_signal_that_did_not_arrive_is_sent_again() -> None:
    driver = running()
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.done(i.Save)
    driver.failed(i.Signal, "RuntimeNotReady")
    driver.pass_time(1)
    assert driver.open == [i.Signal(ContainerID(UID, "app", 0), signal.SIGTERM)]


def test_a_shorter_grace_given_later_counts_from_the_same_start() -> None:
    driver = running()
    pod = driver.machine.pod
    driver.send(i.Assigned(deleted(pod, grace=60)))
    driver.settle()
    driver.pass_time(10)
    driver.send(i.Assigned(deleted(pod, grace=15)))
    assert driver.timers["grace app"] == NOW + 15


def test_a_stop_in_mid_start_ends_the_container_when_it_has_started() -> None:
    driver = Driver()
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.done(i.Save)
    assert driver.count(i.Signal) == 0 and driver.count(i.RemoveSandbox) == 0
    driver.settle(keep=lambda step: isinstance(step, i.Signal))
    assert driver.last(i.Signal).signal == signal.SIGTERM
    driver.exit(143, signal=15)
    driver.settle()
    assert driver.statuses[-1][1] is True


def test_b15_a_failing_pod_can_be_deleted() -> None:
    for driver in (Driver(images={}), running()):
        driver.begin()
        driver.settle()
        if driver.machine.phase == "Running":
            for _ in range(3):
                driver.exit(1)
                driver.settle()
        driver.send(i.Assigned(deleted(driver.machine.pod)))
        driver.settle()
        assert driver.statuses[-1][1] is True
        assert driver.status.phase == "Failed"


def test_a_full_disk_does_not_keep_a_pod_from_ending() -> None:
    driver = running()
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.failed(i.Save, "NodeStateNotSaved")
    assert driver.last(i.Signal).signal == signal.SIGTERM
    driver.settle()
    driver.exit(0)
    driver.settle()
    assert driver.statuses[-1] == (driver.status, True)
    assert driver.status.phase == "Succeeded"


def test_a_pod_that_is_not_assigned_any_more_is_stopped_and_forgotten() -> None:
    driver = running()
    driver.send(i.Removed())
    driver.settle()
    driver.exit(0)
    driver.settle()
    assert kinds(driver.given[-2:]) == ["Publish", "Forget"]
    assert driver.statuses[-1][1] is True


def test_a_finished_pod_frees_its_address_and_keeps_its_logs_until_it_is_deleted() -> None:
    driver = running(make_pod(policy="Never"))
    driver.exit(0)
    driver.settle()
    assert driver.count(i.Detach) == 1 and driver.count(i.RemoveSandbox) == 0
    assert driver.status.podIP == "10.244.0.2"
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle()
    assert driver.count(i.RemoveSandbox) == 1
    assert driver.statuses[-1] == (driver.status, True)
    assert driver.status.phase == "Succeeded"


def test_its_own_status_that_comes_back_is_no_news() -> None:
    driver = running()
    echo = o.Pod()
    echo.CopyFrom(driver.machine.pod)
    echo.status.CopyFrom(driver.status)
    assert driver.send(i.Assigned(echo)) == []


def again(driver: Driver, states: list[ContainerState], *, netns: str = "/run/net") -> Driver:
    """The agent has died and another takes the pod up from its record."""
    fresh = Driver(driver.machine.pod)
    fresh.now = driver.now
    fresh.machine = PodMachine(driver.machine.record, NODE, saved=True)
    fresh.send(i.Begin(states, netns, "10.244.0.2" if netns else "", {"app": IMAGE}))
    return fresh


def state(attempt: int, started: float = NOW, exit: Exit | None = None) -> ContainerState:
    return ContainerState(ContainerID(UID, "app", attempt), 4242, started, 1, exit)


def test_b95_an_agent_restart_touches_nothing_and_says_the_same() -> None:
    driver = running()
    driver.exit(1)
    driver.now += 3
    driver.settle()
    before = driver.status
    fresh = again(driver, [state(1, driver.now), state(0, NOW, Exit(1, 0, False, NOW))])
    assert kinds(fresh.given) == ["Publish"]
    assert fresh.status == before
    assert fresh.container.restartCount == 1


def test_b95_a_start_that_was_cut_off_is_given_again_with_its_attempt() -> None:
    driver = Driver()
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    fresh = again(driver, [state(0, 0.0)])
    assert fresh.last(i.Start).spec.id.attempt == 0


def test_b95_a_crash_loop_goes_on_where_it_was() -> None:
    driver = running()
    fresh = again(driver, [state(5, NOW - 2, Exit(1, 0, False, NOW - 1))])
    assert fresh.count(i.Start) == 0
    assert fresh.timers["restart app"] == pytest.approx(NOW - 1 + 160)


def test_a_stop_that_was_cut_off_goes_on_with_what_is_left_of_its_grace() -> None:
    driver = running()
    driver.send(i.Assigned(deleted(driver.machine.pod, grace=30)))
    driver.settle()
    driver.pass_time(12)
    fresh = again(driver, [state(0)])
    assert fresh.timers["grace app"] == pytest.approx(NOW + 30)
    assert fresh.last(i.Signal).signal == signal.SIGTERM
    driver.pass_time(40)
    late = again(driver, [state(0)])
    assert late.last(i.Signal).signal == signal.SIGKILL


def test_an_end_that_was_cut_off_while_freeing_keeps_its_phase() -> None:
    driver = running()
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle()
    driver.exit(0)
    driver.done(i.Save)
    fresh = again(driver, [], netns="")
    fresh.settle()
    assert fresh.status.phase == "Succeeded"
    assert fresh.statuses[-1][1] is True


def test_a_finished_pod_is_not_started_again_after_a_restart() -> None:
    driver = running(make_pod(policy="Never"))
    driver.exit(0)
    driver.settle()
    fresh = again(driver, [state(0, NOW, Exit(0, 0, False, NOW))])
    fresh.settle()
    assert fresh.status == driver.status
    assert fresh.count(i.Start) == 0


def test_after_a_reboot_sandbox_and_containers_are_made_again() -> None:
    driver = running()
    lost = Exit(137, 9, False, NOW + 1, "ContainerStatusUnknown")
    fresh = again(driver, [state(0, NOW, lost)], netns="")
    fresh.settle()
    assert fresh.container.restartCount == 1
    assert fresh.container.lastState.terminated.reason == "ContainerStatusUnknown"
    assert fresh.status.phase == "Running"


def test_a_clock_that_jumps_back_does_not_lengthen_a_wait() -> None:
    driver = running()
    driver.exit(1)
    driver.settle()
    driver.now -= 5000
    facts = driver.machine.container("app")
    assert facts is not None and facts.run is not None
    driver.send(i.ContainerExited(ContainerID(UID, "app", 1), Exit(1, 0, False, NOW)))
    assert driver.timers["restart app"] - driver.now == 10


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 15), ("SIGQUIT", 3), ("quit", 3), ("3", 3), ("SIGNOPE", 15), ("0", 15), ("9999", 15), ("SIG_DFL", 15)],
)
def test_the_image_may_name_its_stop_signal(text: str, number: int) -> None:
    image = Image("1", "2", (), 0, (), ImageConfig(stop_signal=text))
    assert stop_signal(image) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGRTMIN+3", 37), ("rtmin+3", 37), ("SIGRTMIN+99", 15), ("\u00b2", 15), ("9" * 5000, 15), ("SIGNOPE+3", 15)],
)
def test_real_time_and_impossible_stop_signals(text: str, number: int) -> None:
    image = Image("1", "2", (), 0, (), ImageConfig(stop_signal=text))
    assert stop_signal(image) == number


def test_a_record_of_no_pod_is_refused() -> None:
    with pytest.raises(Exception, match=r"pars|wire|tag"):
        PodMachine(PodRecord(UID, b"\xff\xff\xff", NOW), NODE, saved=True)


def test_a_pod_that_the_cluster_saw_running_is_never_pending_again_though_its_node_lost_all_records() -> None:
    pod = make_pod()
    pod.status.phase = "Running"
    driver = Driver(pod)
    driver.begin()
    assert driver.status.phase == "Running" and not driver.container.ready
    assert driver.container.state.waiting.reason == "ContainerCreating"
