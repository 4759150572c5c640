"""How a container comes by its image: which instructions follow, and what the status says meanwhile."""

from __future__ import annotations

import pytest

from shoal.agent.images.port import Image, ImageConfig
from shoal.agent.pods import instructions as i
from shoal.agent.pods.images import pull_policy
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, UID, Driver, deleted, make_pod, running


def pod_with(policy: str) -> o.Pod:
    pod = make_pod()
    pod.spec.containers[0].imagePullPolicy = policy
    return pod


def begun(policy: str, images: dict[str, Image] | None = None) -> Driver:
    driver = Driver(pod_with(policy), images=images if images is not None else {})
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.PullImage))
    return driver


def waiting(driver: Driver) -> tuple[str, str]:
    state = driver.container.state.waiting
    return state.reason, state.message


@pytest.mark.parametrize(
    ("image", "written", "policy"),
    [
        ("app", "", "Always"),
        ("app:latest", "", "Always"),
        ("app:1", "", "IfNotPresent"),
        ("app@sha256:" + "0" * 64, "", "IfNotPresent"),
        ("UPPER", "", "IfNotPresent"),
        ("app", "Never", "Never"),
    ],
)
def test_the_pull_policy_follows_from_the_tag(image: str, written: str, policy: str) -> None:
    container = o.Container(image=image)
    if written:
        container.imagePullPolicy = written
    assert pull_policy(container) == policy


def test_if_not_present_pulls_what_is_not_here_and_only_that() -> None:
    driver = begun("IfNotPresent")
    assert driver.open == [i.PullImage("app", "app:1", f"{UID}/app")]
    driver.settle()
    assert driver.status.phase == "Running"
    here = begun("IfNotPresent", {"app:1": IMAGE})
    assert here.count(i.PullImage) == 0 and here.status.phase == "Running"


def test_always_asks_the_registry_before_each_run() -> None:
    driver = begun("Always", {"app:1": IMAGE})
    assert driver.count(i.HoldImage) == 0 and driver.count(i.Start) == 0
    driver.settle()
    assert driver.status.phase == "Running"
    driver.exit(1)
    assert driver.count(i.PullImage) == 2
    driver.settle()
    assert driver.count(i.Start) == 2


def test_never_waits_until_somebody_loads_the_image() -> None:
    driver = begun("Never")
    reason, message = waiting(driver)
    assert reason == "ErrImageNeverPull" and "shoal image load" in message
    assert not driver.open
    driver.images["app:1"] = IMAGE
    driver.send(i.ImagesChanged())
    driver.settle()
    assert driver.status.phase == "Running" and driver.count(i.PullImage) == 0


def test_a_failed_pull_says_the_registry_s_words_and_waits_longer_each_time() -> None:
    driver = begun("IfNotPresent")
    waits = []
    for _ in range(7):
        driver.failed(i.PullImage, "ErrImagePull", "registry says: manifest unknown")
        assert waiting(driver) == ("ErrImagePull", "failed to pull image app:1: registry says: manifest unknown")
        waits.append(driver.timers["pull app"] - driver.now)
        driver.pass_time(1)
        reason, message = waiting(driver)
        assert reason == "ImagePullBackOff"
        assert message.startswith('Back-off pulling image "app:1", next try at ') and "manifest unknown" in message
        assert not driver.open
        driver.pass_time(waits[-1] - 1)
        driver.settle(keep=lambda step: isinstance(step, i.PullImage))
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    driver.settle()
    assert driver.status.phase == "Running"


def test_a_registry_that_asks_for_patience_gets_it() -> None:
    driver = begun("IfNotPresent")
    driver.failed(i.PullImage, "ErrImagePull", "too many requests", retry_after=90.0)
    assert driver.timers["pull app"] - driver.now == 90


def test_an_image_loaded_by_hand_meanwhile_starts_the_pod_without_another_pull() -> None:
    driver = begun("IfNotPresent")
    driver.failed(i.PullImage, "RegistryUnavailable", "no route")
    driver.send(i.ImagesChanged())
    driver.settle()
    assert driver.count(i.PullImage) == 1, "another image does not end the backoff"
    assert waiting(driver)[0] == "ErrImagePull"
    driver.images["app:1"] = IMAGE
    driver.send(i.ImagesChanged())
    driver.settle()
    assert driver.status.phase == "Running" and driver.count(i.PullImage) == 1


def test_a_pull_that_goes_on_again_is_not_said_to_be_held_back() -> None:
    driver = begun("IfNotPresent")
    driver.failed(i.PullImage, "ErrImagePull", "no")
    pod = o.Pod()
    pod.CopyFrom(driver.machine.pod)
    pod.metadata.labels["changed"] = "yes"
    driver.send(i.Assigned(pod))
    driver.settle(keep=lambda step: isinstance(step, i.PullImage))
    driver.send(i.Progress(driver.open[0], "layer 1 of 2"))
    driver.pass_time(1)
    assert waiting(driver)[0] == "ContainerCreating"


def test_a_name_that_no_image_can_have_is_not_tried_again() -> None:
    driver = Driver(pod_with("IfNotPresent"))
    driver.begin()
    driver.failed(i.HoldImage, "InvalidImageName", "it is empty", retryable=False)
    driver.settle()
    assert waiting(driver) == ("InvalidImageName", "it is empty")
    assert not driver.open
    driver = begun("Always")
    driver.failed(i.PullImage, "InvalidImageName", "it is empty", retryable=False)
    assert waiting(driver)[0] == "InvalidImageName" and "pull app" not in driver.timers


def test_how_far_a_pull_is_can_be_seen() -> None:
    driver = begun("IfNotPresent")
    driver.send(i.Progress(driver.open[0], "layer 3 of 10: 12.4 of 30.1 MiB"))
    assert waiting(driver) == ("ContainerCreating", "pulling image app:1: layer 3 of 10: 12.4 of 30.1 MiB")


def test_a_pull_in_flight_does_not_hold_up_the_pod_s_end() -> None:
    driver = begun("IfNotPresent")
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle(keep=lambda step: isinstance(step, i.PullImage))
    assert driver.ended and driver.status.phase == "Failed"


def test_a_new_image_in_the_manifest_is_looked_for_at_once() -> None:
    driver = begun("IfNotPresent")
    driver.failed(i.PullImage, "ErrImagePull", "unknown")
    pod = o.Pod()
    pod.CopyFrom(driver.machine.pod)
    pod.spec.containers[0].image = "app:2"
    driver.images["app:2"] = Image("sha256:3", "sha256:4", ("app:2",), 1, ("/l",), ImageConfig(("/app",)))
    driver.send(i.Assigned(pod))
    driver.settle()
    assert driver.status.phase == "Running" and driver.container.imageID == "sha256:3"


def test_a_live_container_is_not_pulled_for_when_the_agent_starts_again() -> None:
    driver = running(pod_with("Always"))
    pulls = driver.count(i.PullImage)
    driver.send(i.ImagesChanged())
    driver.send(i.ObjectsChanged())
    assert driver.count(i.PullImage) == pulls
