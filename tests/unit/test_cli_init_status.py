"""The STATUS column of a pod with init containers (kubectl's words)."""

from __future__ import annotations

import pytest

from shoal.deploy.cli.printers.reasons import why_not_ready
from shoal.deploy.cli.printers.status import pod_status, restarts
from shoal.proto.v1 import objects_pb2 as o


def made(*states: o.ContainerState, initialized: str = "False") -> o.Pod:
    pod = o.Pod()
    pod.status.phase = "Pending"
    pod.status.conditions.add(type="Initialized", status=initialized)
    pod.spec.nodeName = "n1"
    for number, state in enumerate(states):
        pod.spec.initContainers.add(name=f"i{number}")
        pod.status.initContainerStatuses.add(name=f"i{number}", state=state, restartCount=number)
    pod.status.containerStatuses.add(name="app", restartCount=5).state.waiting.reason = "PodInitializing"
    return pod


def waiting(reason: str, message: str = "") -> o.ContainerState:
    return o.ContainerState(waiting=o.ContainerStateWaiting(reason=reason, message=message))


def ended(code: int, reason: str = "Error") -> o.ContainerState:
    return o.ContainerState(terminated=o.ContainerStateTerminated(exitCode=code, reason=reason))


RUNNING = o.ContainerState(running=o.ContainerStateRunning())


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ([RUNNING, waiting("PodInitializing")], "Init:0/2"),
        ([ended(0, "Completed"), RUNNING], "Init:1/2"),
        ([ended(0, "Completed"), waiting("PodInitializing")], "Init:1/2"),
        ([waiting("CrashLoopBackOff")], "Init:CrashLoopBackOff"),
        ([waiting("ImagePullBackOff")], "Init:ImagePullBackOff"),
        ([ended(3)], "Init:Error"),
        ([ended(3, "")], "Init:ExitCode:3"),
        ([ended(0, "Completed")], "PodInitializing"),
    ],
)
def test_the_status_says_which_init_container_the_pod_is_at(states: list[o.ContainerState], word: str) -> None:
    assert pod_status(made(*states)) == word


def test_a_sidecar_that_is_started_again_leaves_the_pod_its_own_word() -> None:
    pod = made(waiting("CrashLoopBackOff"), initialized="True")
    pod.spec.initContainers[0].restartPolicy = "Always"
    pod.status.phase = "Running"
    pod.status.containerStatuses[0].ready = True
    pod.status.containerStatuses[0].state.CopyFrom(RUNNING)
    assert pod_status(pod) == "Running"
    pod.status.initContainerStatuses[0].restartCount = 2
    assert restarts(pod)[0] == 7, "a sidecar's restarts count"


def test_why_a_pod_is_not_ready_names_the_init_container_and_not_those_that_wait_for_it() -> None:
    why = why_not_ready(made(ended(0, "Completed"), waiting("ErrImagePull", "no route")))
    assert why == "init container i1: ErrImagePull: no route"
