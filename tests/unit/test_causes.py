"""Why something died, or waits, in plain words: certificates, stories and what `why` prints."""

from __future__ import annotations

import signal

import pytest

from shoal.deploy.cli.printers import reasons
from shoal.deploy.cli.printers.details import describe
from shoal.deploy.cli.printers.stories import as_tree, text
from shoal.proto.causes import cause
from shoal.proto.v1 import objects_pb2 as o

NOW = 1_800_000_000
MI = 1 << 20


def death(reason: str = "Error", code: int = 1, number: int = 0, **fields: object) -> o.Death:
    made = o.Death(reason=reason, exitCode=code, signal=number, container="main", node="n1", **fields)  # type: ignore[arg-type]
    made.metadata.name = "web.main.0.0a1b2c3d"
    made.pod.name, made.pod.uid = "web", "u"
    if not made.HasField("startedAt"):
        made.startedAt.seconds = NOW - 50
    made.finishedAt.seconds = NOW - 20
    return made


def used(**fields: int) -> o.ResourceRecord:
    return o.ResourceRecord(**fields)  # type: ignore[arg-type]


def failed(count: int) -> list[o.ProbeRecord]:
    return [o.ProbeRecord(probe="liveness", passed=n >= count, message="HTTP 500") for n in range(count, -1, -1)]


KILLED = int(signal.SIGKILL)
MEMORY = used(peakMemoryBytes=64 * MI, memoryLimitBytes=64 * MI, oomKills=1)
CASES = [
    (
        death("OOMKilled", 137, KILLED, resources=MEMORY),
        "used 64Mi of its limit of 64Mi; raise resources.limits.memory",
    ),
    (death("OOMKilled", 1, resources=used(memoryLimitBytes=MI, oomKills=2)), "2 processes of it for memory: limit 1Mi"),
    (death("OOMKilled", 137, KILLED, resources=used(peakMemoryBytes=MI)), "no limit of its own and used 1Mi"),
    (death(code=127), "exit code 127: command not found"),
    (death(code=126), "cannot be executed"),
    (death(code=42), "exit code 42: it ended by itself"),
    (death(code=139), "reports that SIGSEGV ended a process of its own (139 is 128 + 11)"),
    (death(code=139, number=11), "SIGSEGV ended it (exit code 139): it crashed"),
    (death(code=137, number=KILLED), "neither its node nor its memory limit asked for that"),
    (death(code=143, number=15), "SIGTERM ended it (exit code 143): its node did not send that"),
    (death(code=134, number=6), "gave up by itself"),
    (death(code=191, number=63), "signal 63 ended it"),
    (
        death("Unhealthy", 143, 15, probes=failed(3)),
        "its liveness probe failed 3 times in a row: HTTP 500, so its node",
    ),
    (death("Unhealthy", 137, KILLED, message="liveness probe failed: refused"), "liveness probe failed: refused, so"),
    (death("FailedPostStartHook", message="the postStart hook failed: exit code 3"), "the postStart hook failed: exit"),
    (death("DeadlineExceeded", 143, 15), "longer than activeDeadlineSeconds"),
    (death("Evicted", 143, 15, message="the node was low on memory"), "evicted: the node was low on memory"),
    (death("KilledAfterGrace", 137, KILLED), "did not end within its grace period, and was killed"),
    (death("StartError", 128, message="no such user", startedAt=o.Time()), "it could not be started: no such user"),
    (death("ContainerStatusUnknown", 137), "how it ended is not known"),
    (death(resources=used(periods=100, throttledPeriods=80)), "; its CPU limit held it back in 80 % of the time"),
    (death(resources=used(refusedForks=4)), "; 4 new processes were refused"),
    (death(resources=used(oomKills=1)), "; while it ran the kernel killed 1 process of it for memory"),
    (death(changes=["image: a -> b", "x"]), "; changed since it was last healthy: image: a -> b (and 1 more change"),
]


@pytest.mark.parametrize(("dead", "words"), CASES, ids=[words[:40] for _, words in CASES])
def test_every_cause_is_said_in_plain_words(dead: o.Death, words: str) -> None:
    said = cause(dead)
    assert words in said
    assert "\n" not in said and len(said) < 1000


def test_few_periods_prove_no_throttling() -> None:
    assert "CPU limit" not in cause(death(resources=used(periods=4, throttledPeriods=4)))


# ---- stories ----
def pod(name: str = "web", uid: str = "u", phase: str = "Running", **fields: object) -> o.Pod:
    made = o.Pod(kind="Pod", status=o.PodStatus(phase=phase, **fields))  # type: ignore[arg-type]
    made.metadata.name, made.metadata.uid, made.metadata.namespace = name, uid, "default"
    made.spec.nodeName = "n1"
    made.spec.containers.add(name="main")
    return made


def looping(code: int = 1) -> o.Pod:
    container = o.ContainerStatus(name="main", restartCount=3)
    container.state.waiting.reason = "CrashLoopBackOff"
    container.state.waiting.message = (
        "back-off 40s restarting failed container=main pod=web_default(u), next start at 12:00:40Z: boom"
    )
    last = container.lastState.terminated
    last.exitCode, last.reason, last.containerID = code, "Error" if code else "Completed", "shoal://u/main/3"
    last.startedAt.seconds = NOW - 60
    return pod(containerStatuses=[container])


def told(story: reasons.Story) -> str:
    return " ".join(" ".join(text(story, NOW, 10)).split())


def test_a_crash_loop_is_told_with_its_cause_changes_and_last_lines() -> None:
    dead = death(attempt=3, changes=["image: a -> b"], logTail=["one", "two \x1b[31mred"])
    dead.cause, dead.lastHealthyAt.seconds = cause(dead), NOW - 300
    earlier = death(code=9)
    earlier.pod.uid = "another pod of that name"
    story = reasons.of_pod(looping(), [], [dead, earlier])
    said = told(story)
    assert story.wrong and said.startswith("pod/web is CrashLoopBackOff on node n1 ")
    assert "it has ended 4 times; back-off 40s, it starts again at 12:00:40Z: exit code 1" in said
    assert "changed since it was last healthy (5m ago): image: a -> b" in said
    assert "| one | two" in said and "\x1b" not in said
    assert said.count("exit code 1:") == 1, "the cause is told once"
    assert [one["exitCode"] for one in as_tree(story)["deaths"]] == [1]


def test_deaths_alike_are_told_once() -> None:
    dead = [death(attempt=n, code=3, logTail=["boom"]) for n in (1, 2, 3)] + [death(attempt=0, code=4)]
    lines = text(reasons.of_pod(looping(), [], dead), NOW, 10)
    assert [line for line in lines if line.startswith("  likewise")] == [
        f"  likewise 20s ago (run {n})" for n in (3, 2)
    ]


def test_a_container_that_ends_well_again_and_again_is_told_what_it_needs() -> None:
    assert "restartPolicy Always starts it again" in told(reasons.of_pod(looping(0), [], []))


def test_without_a_certificate_the_status_is_explained() -> None:
    assert "exit code 127: command not found" in told(reasons.of_pod(looping(127), [], []))


def test_an_unplaced_pod_tells_the_schedulers_reasons() -> None:
    waiting = pod(phase="Pending", conditions=[o.Condition(type="PodScheduled", status="False", message="0/3 nodes")])
    waiting.spec.nodeName = ""
    assert "0/3 nodes" in told(reasons.of_pod(waiting, [], []))


def test_a_pod_that_is_not_ready_tells_its_probe_and_warnings() -> None:
    running = o.ContainerStatus(name="main", started=True)
    running.state.running.startedAt.seconds = NOW
    unready = pod(
        containerStatuses=[running],
        conditions=[o.Condition(type="Ready", status="False", message="main: readiness probe failed: HTTP 503")],
    )
    warning = o.Event(type="Warning", reason="Slow", message="is slow", count=3)
    again = o.Event(type="Warning", reason="Unhealthy", message="readiness probe failed: HTTP 503")
    said = told(reasons.of_pod(unready, [warning, again], []))
    assert said.count("HTTP 503") == 1
    assert "readiness probe failed: HTTP 503" in said and "Slow: is slow (x3)" in said


def test_a_well_pod_is_said_to_be_well() -> None:
    running = o.ContainerStatus(name="main", ready=True, started=True)
    running.state.running.startedAt.seconds = NOW
    well = pod(containerStatuses=[running], conditions=[o.Condition(type="Ready", status="True")])
    story = reasons.of_pod(well, [], [])
    assert not story.wrong and told(story) == "pod/web is Running on node n1 and ready: nothing is wrong"
    assert not reasons.badness(well)


def test_a_gone_pod_is_told_from_its_certificates_and_its_deletion_is_quiet() -> None:
    quiet = death("KilledAfterGrace", 137, KILLED)
    story = reasons.of_gone("web", "default", [quiet])
    assert not story.wrong and "was deleted" in told(story) and not story.deaths
    story = reasons.of_gone("web", "default", [death(code=3), quiet])
    assert story.wrong and "pod/web is gone; it ran on node n1" in told(story) and "exit code 3" in told(story)


def test_of_several_pods_the_worst_is_told_and_what_the_rollout_changed() -> None:
    well = pod("a", conditions=[o.Condition(type="Ready", status="True")])
    placed = pod("b", phase="Pending")
    bad = looping()
    bad.metadata.ownerReferences.add(uid="rs2")
    assert reasons.worst([well, bad, placed]) is bad
    sets = [replica_set("rs1", "1", "app:1"), replica_set("rs2", "2", "app:2")]
    found = reasons.rollout(sets, bad)
    assert found is not None
    assert found.text == "revision 2 differs from revision 1: containers[main].image changed (app:1 -> app:2)"
    assert reasons.rollout(sets, well) is None


def replica_set(uid: str, revision: str, image: str) -> o.ReplicaSet:
    made = o.ReplicaSet()
    made.metadata.uid = uid
    made.metadata.annotations["deployment.kubernetes.io/revision"] = revision
    made.spec.template.spec.containers.add(name="main", image=image)
    return made


def test_a_node_tells_its_conditions_and_its_troubled_pods() -> None:
    node = o.Node()
    node.metadata.name = "n1"
    node.status.conditions.add(type="Ready", status="False", reason="NodeLost", message="no heartbeat for 15 s")
    node.status.conditions.add(type="MemoryPressure", status="False")
    said = told(reasons.of_node(node, [looping()]))
    assert "node/n1 is NotReady: 1 of its 1 pods are not well" in said
    assert "no heartbeat for 15 s" in said and "MemoryPressure" not in said and "pod/web: CrashLoopBackOff" in said


def test_a_description_shows_the_last_death_shortly() -> None:
    first, last = death(code=3), death(code=4, attempt=1)
    last.finishedAt.seconds, last.cause = NOW - 5, "exit code 4: why not"
    lines = describe(looping(), NOW, [], deaths=[last, first])
    assert "Last Death:      container main, 5s ago: exit code 4: why not" in lines
    assert "Deaths:          2 kept, see: shoal why pod/web" in lines


def test_a_well_pod_on_a_silent_node_is_not_said_to_be_well() -> None:
    running = o.ContainerStatus(name="main", ready=True, started=True)
    running.state.running.startedAt.seconds = NOW
    well = pod(containerStatuses=[running], conditions=[o.Condition(type="Ready", status="True")])
    silent = o.Node(kind="Node")
    silent.status.conditions.add(type="Ready", status="Unknown", message="its agent is not heard of")
    story = reasons.of_pod(well, [], [], silent)
    assert story.wrong and "its agent is not heard of; what is known of the pod is from before" in told(story)
    silent.status.conditions[0].status = "True"
    assert not reasons.of_pod(well, [], [], silent).wrong
