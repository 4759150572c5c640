"""Probes, hooks, deadlines and messages: which instructions follow, and what the status says."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from shoal.agent.pods import instructions as i
from shoal.agent.pods.facts import ContainerFacts, Run
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.probing import Verdict
from shoal.agent.runtime.port import ContainerID, ContainerState, Exit
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, NODE, NOW, UID, Driver, deleted, make_pod, running


def probed(*kinds: str, policy: str = "Always", grace: int = 30) -> o.Pod:
    pod = make_pod(policy=policy, grace=grace)
    container = pod.spec.containers[0]
    container.ports.add(name="web", containerPort=8080)
    for kind in kinds:
        getattr(container, f"{kind}Probe").httpGet.port.text = "web"
    return pod


def hooked(*which: str, grace: int = 30) -> o.Pod:
    pod = make_pod(grace=grace)
    for name in which:
        getattr(pod.spec.containers[0].lifecycle, name).exec.command.append("/hook")
    return pod


def up(pod: o.Pod) -> Driver:
    driver = Driver(pod)
    driver.begin()
    driver.settle()
    return driver


def ready(driver: Driver) -> tuple[bool, str]:
    """The container's readiness, and the pod's."""
    conditions = {c.type: c.status for c in driver.status.conditions}
    assert conditions["Ready"] == conditions["ContainersReady"]
    return driver.container.ready, conditions["Ready"]


def signals(driver: Driver) -> Sequence[int]:
    return [step.signal for step in driver.given if isinstance(step, i.Signal)]


def again(driver: Driver, *states: ContainerState) -> Driver:
    """The agent has died and another takes the pod up from what was saved."""
    fresh = Driver(driver.machine.pod)
    fresh.now = driver.now
    assert driver.machine._saved is not None
    fresh.machine = PodMachine(driver.machine._saved, NODE, saved=True)
    fresh.send(i.Begin(states, "/run/net", "10.244.0.2", {"app": IMAGE}))
    return fresh


def ran(attempt: int = 0, exit: Exit | None = None) -> ContainerState:
    return ContainerState(ContainerID(UID, "app", attempt), 7, NOW, 1, exit)


# ---- probes ----
def test_b36_a_pod_with_a_readiness_probe_is_ready_when_that_says_so_and_no_longer() -> None:
    driver = up(probed("readiness"))
    target = driver.probes["app"]
    assert (target.host, target.ports, set(target.probes)) == ("10.244.0.2", {"web": 8080}, {"readiness"})
    assert driver.status.phase == "Running" and ready(driver) == (False, "False")
    driver.now += 5
    driver.tell("readiness", True)
    assert ready(driver) == (True, "True")
    since = next(c.lastTransitionTime.seconds for c in driver.status.conditions if c.type == "Ready")
    assert since == int(NOW + 5)
    driver.tell("readiness", False, message="HTTP 503")
    assert ready(driver) == (False, "False")
    condition = next(c for c in driver.status.conditions if c.type == "Ready")
    assert condition.message == "containers with unready status: [app]; app: readiness probe failed: HTTP 503"


def test_b37_never_ready_is_never_a_restart() -> None:
    driver = up(probed("readiness"))
    for _ in range(5):
        driver.tell("readiness", False)
    assert signals(driver) == [] and driver.container.restartCount == 0


def test_b38_readiness_counts_only_when_the_startup_probe_has_passed() -> None:
    driver = up(probed("startup", "readiness"))
    driver.tell("readiness", True)
    assert (driver.container.started, *ready(driver)) == (False, False, "False")
    driver.tell("startup", True)
    assert (driver.container.started, *ready(driver)) == (True, True, "True")


def test_the_timers_of_the_run_before_do_not_end_the_next_one() -> None:
    driver = up(probed("liveness"))
    driver.tell("liveness", False)
    driver.settle()
    driver.exit(143, signal=15)
    driver.settle()
    driver.pass_time(31)
    driver.tell("liveness", False)
    assert signals(driver) == [signal.SIGTERM, signal.SIGTERM], "it has a grace of its own"


@pytest.mark.parametrize("kind", ["liveness", "startup"])
def test_b29_a_failing_probe_ends_the_container_with_its_grace_and_the_policy_starts_it_again(kind: str) -> None:
    driver = up(probed(kind, grace=7))
    driver.tell(kind, False, message="HTTP 500")
    assert signals(driver) == [signal.SIGTERM] and driver.timers["grace app"] == NOW + 7
    assert "app" not in driver.probes
    driver.settle()
    driver.pass_time(8)
    driver.settle()
    assert signals(driver) == [signal.SIGTERM, signal.SIGKILL]
    driver.exit(137, signal=9)
    driver.settle()
    last = driver.container.lastState.terminated
    assert (last.reason, last.message) == ("Unhealthy", f"{kind} probe failed: HTTP 500")
    assert driver.container.restartCount == 1 and driver.probes["app"].id.attempt == 1


def test_b29_under_never_a_failing_probe_fails_the_pod() -> None:
    driver = up(probed("liveness", policy="Never"))
    driver.tell("liveness", False)
    driver.settle()
    driver.exit(143, signal=15)
    driver.settle()
    assert driver.status.phase == "Failed"
    assert driver.container.state.terminated.reason == "Unhealthy"


def test_a_probe_s_own_grace_wins() -> None:
    pod = probed("liveness")
    pod.spec.containers[0].livenessProbe.terminationGracePeriodSeconds = 2
    driver = up(pod)
    driver.tell("liveness", False)
    assert driver.timers["grace app"] == NOW + 2


def test_a_word_of_an_earlier_run_is_not_heard() -> None:
    driver = up(probed("liveness", "readiness"))
    driver.exit(1)
    driver.settle()
    driver.send(i.Told(Verdict(ContainerID(UID, "app", 0), "liveness", False, "late")))
    driver.send(i.Told(Verdict(ContainerID(UID, "app", 0), "readiness", True, "late")))
    driver.send(i.Told(Verdict(ContainerID(UID, "nobody", 0), "readiness", True, "late")))
    assert signals(driver) == [] and ready(driver) == (False, "False")


def test_a_deleted_pod_is_not_ready_and_not_probed() -> None:
    driver = up(probed("readiness", "liveness"))
    driver.tell("readiness", True)
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    assert ready(driver) == (False, "False")
    driver.settle()
    assert driver.probes == {}
    driver.tell("liveness", False)
    assert signals(driver) == [signal.SIGTERM]


def test_b95_readiness_outlives_the_agent() -> None:
    driver = up(probed("startup", "readiness"))
    driver.tell("startup", True)
    driver.now += 9
    driver.tell("readiness", True)
    driver.settle()
    fresh = again(driver, ran())
    assert fresh.status == driver.status
    assert (fresh.probes["app"].started, fresh.probes["app"].ready) == (True, True)
    assert [type(one) for one in fresh.given] == [i.SetProbes, i.Publish]


def test_b95_an_end_that_a_probe_began_goes_on_with_the_next_agent() -> None:
    driver = up(probed("liveness"))
    driver.tell("liveness", False, message="HTTP 500")
    driver.settle()
    driver.now += 10
    fresh = again(driver, ran())
    assert fresh.timers["grace app"] == pytest.approx(NOW + 30) and signals(fresh) == [signal.SIGTERM]
    fresh.settle()
    fresh.exit(143, signal=15)
    fresh.settle()
    assert fresh.container.lastState.terminated.reason == "Unhealthy"


# ---- hooks ----
def test_b25_a_container_is_running_only_after_its_post_start_hook() -> None:
    driver = Driver(hooked("postStart"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    (hook,) = driver.open
    assert isinstance(hook, i.RunHook) and (hook.which, hook.host) == ("postStart", "10.244.0.2")
    assert driver.status.phase == "Pending" and driver.container.state.waiting.reason == "ContainerCreating"
    driver.settle()
    assert driver.status.phase == "Running" and driver.container.ready
    assert [one for one in again(driver, ran()).given if isinstance(one, i.RunHook)] == []


def test_b95_a_post_start_hook_that_was_cut_off_is_run_again() -> None:
    driver = Driver(hooked("postStart"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    assert again(driver, ran()).last(i.RunHook).which == "postStart"


def test_b26_a_failing_post_start_hook_ends_the_container_and_says_so() -> None:
    driver = Driver(hooked("postStart"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    driver.done(i.RunHook, "exit code 1")
    assert signals(driver) == [signal.SIGTERM]
    driver.settle()
    driver.exit(143, signal=15)
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    last = driver.container.lastState.terminated
    assert (last.reason, last.message) == ("FailedPostStartHook", "the postStart hook failed: exit code 1")
    assert driver.container.restartCount == 1


def test_b27_pre_stop_runs_before_term_and_inside_the_grace() -> None:
    driver = up(hooked("preStop", grace=10))
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.now += 2
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    hook = driver.last(i.RunHook)
    assert hook.which == "preStop" and hook.timeout_s == 8 and signals(driver) == []
    driver.now += 3
    driver.done(i.RunHook, "")
    assert signals(driver) == [signal.SIGTERM] and driver.timers["grace app"] == NOW + 10


def test_b28_a_pre_stop_hook_that_uses_all_of_the_grace_leaves_two_seconds_for_term() -> None:
    driver = up(hooked("preStop", grace=10))
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    driver.pass_time(10)
    assert signals(driver) == []
    driver.done(i.RunHook, "its time was up")
    driver.settle()
    driver.pass_time(1.9)
    assert signals(driver) == [signal.SIGTERM]
    driver.pass_time(0.2)
    assert signals(driver) == [signal.SIGTERM, signal.SIGKILL]


def test_a_pre_stop_hook_that_never_answers_does_not_keep_the_container() -> None:
    driver = up(hooked("preStop", grace=10))
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    driver.pass_time(12.1)
    assert signals(driver) == [signal.SIGKILL]
    driver.exit(137, signal=9)
    driver.settle(keep=lambda step: isinstance(step, i.RunHook))
    assert driver.ended


def test_pre_stop_runs_before_a_probe_s_end_too_and_not_without_grace() -> None:
    pod = hooked("preStop")
    pod.spec.containers[0].livenessProbe.tcpSocket.port.number = 80
    driver = up(pod)
    driver.tell("liveness", False)
    assert driver.last(i.RunHook).which == "preStop" and signals(driver) == []
    at_once = up(hooked("preStop"))
    at_once.send(i.Assigned(deleted(at_once.machine.pod, grace=0)))
    at_once.settle()
    assert signals(at_once) == [signal.SIGKILL] and at_once.count(i.RunHook) == 0


# ---- deadlines ----
def test_b40_a_pod_fails_when_its_deadline_has_passed() -> None:
    pod = make_pod(grace=5)
    pod.spec.activeDeadlineSeconds = 20
    driver = running(pod)
    driver.pass_time(19.9)
    assert signals(driver) == []
    driver.pass_time(0.2)
    driver.settle()
    assert signals(driver) == [signal.SIGTERM] and driver.timers["grace app"] == pytest.approx(NOW + 25)
    driver.exit(0)
    driver.settle()
    assert (driver.status.phase, driver.status.reason) == ("Failed", "DeadlineExceeded")
    assert driver.count(i.Detach) == 1 and driver.count(i.RemoveSandbox) == 0
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle()
    assert driver.ended and driver.status.reason == "DeadlineExceeded"


def test_b40_the_deadline_counts_over_agents_and_for_a_pod_that_never_started() -> None:
    pod = make_pod()
    pod.spec.activeDeadlineSeconds = 20
    driver = running(pod)
    driver.now += 15
    assert again(driver, ran()).timers["deadline"] == pytest.approx(NOW + 20)
    waiting = Driver(pod, images={})
    waiting.begin()
    waiting.settle(keep=lambda step: isinstance(step, i.PullImage))
    waiting.pass_time(21)
    waiting.settle(keep=lambda step: isinstance(step, i.PullImage))
    assert (waiting.status.phase, waiting.status.reason) == ("Failed", "DeadlineExceeded")


def test_a_pod_that_its_node_gives_up_fails_with_the_reason() -> None:
    driver = running()
    driver.send(i.GiveUp("Evicted", "the node was low on memory", 3.0))
    driver.settle()
    assert driver.timers["grace app"] == NOW + 3
    driver.exit(143, signal=15)
    driver.settle()
    status = driver.status
    assert (status.phase, status.reason, status.message) == ("Failed", "Evicted", "the node was low on memory")


def test_a_failure_is_on_disk_before_it_is_told_unless_the_disk_refuses() -> None:
    for full in (False, True):
        driver = Driver(make_pod())
        driver.begin()
        driver.done(i.Save)
        driver.send(i.GiveUp("Evicted", "the node was low on memory", 3.0))
        assert driver.status.phase == "Pending", "an agent that dies now knows nothing of it"
        if full:
            driver.failed(i.Save, "NodeStateNotSaved")
        driver.settle()
        assert (driver.status.phase, driver.status.reason) == ("Failed", "Evicted")


# ---- messages ----
def told(driver: Driver, code: int, message: str) -> None:
    driver.send(i.ContainerExited(ContainerID(UID, "app", 0), Exit(code, 0, False, driver.now, message=message)))


@pytest.mark.parametrize(("policy", "reads"), [("File", False), ("FallbackToLogsOnError", True)])
def test_b12_the_log_s_end_is_read_only_where_it_is_asked_for(policy: str, reads: bool) -> None:
    pod = make_pod(policy="Never")
    pod.spec.containers[0].terminationMessagePolicy = policy
    driver = running(pod)
    told(driver, 1, "")
    assert bool(driver.count(i.ReadLogTail)) is reads
    if reads:
        assert driver.status.phase == "Running", "the final status waits for it"
        driver.done(i.ReadLogTail, "the end of the log")
    driver.settle()
    assert driver.status.phase == "Failed"
    assert driver.container.state.terminated.message == ("the end of the log" if reads else "")


@pytest.mark.parametrize(("code", "message"), [(0, ""), (1, "of the file")])
def test_b12_the_file_s_message_or_a_good_end_need_no_log(code: int, message: str) -> None:
    pod = make_pod(policy="Never")
    pod.spec.containers[0].terminationMessagePolicy = "FallbackToLogsOnError"
    driver = running(pod)
    told(driver, code, message)
    driver.settle()
    assert driver.count(i.ReadLogTail) == 0 and driver.container.state.terminated.message == message


def test_a_pod_s_messages_are_bounded_together() -> None:
    driver = running(make_pod(policy="Never", containers=("app", *(f"c{n}" for n in range(5)))))
    told(driver, 1, "\u00e4" * 2048)
    message = driver.container.state.terminated.message
    assert len(message.encode()) == 2048 and set(message) == {"\u00e4"}


def test_an_end_s_facts() -> None:
    run = Run(0)
    run.doom("", "", 5.0, NOW)
    run.doom("Unhealthy", "later", 1.0, NOW + 9)
    assert (run.note.end_since, run.note.grace, run.note.reason) == (NOW, 5.0, "")
    facts = ContainerFacts(o.Container(name="x"))
    assert not facts.up and not facts.ready and not facts.started
