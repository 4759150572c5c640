"""Volumes and configuration in a pod's life: when they are made, brought up to date and freed."""

from __future__ import annotations

from shoal.agent.objects import MemoryObjects
from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine
from shoal.agent.runtime.port import ContainerID, ContainerState
from shoal.agent.volumes.port import Files
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, NODE, UID, Driver, deleted, make_pod, record_of


def config_map(text: str, name: str = "web") -> o.ConfigMap:
    made = o.ConfigMap(apiVersion="v1", kind="ConfigMap")
    made.metadata.name, made.metadata.namespace = name, "default"
    made.data["index"] = text
    return made


def pod_with_volume() -> o.Pod:
    pod = make_pod()
    volume = pod.spec.volumes.add(name="site")
    volume.configMap.name = "web"
    pod.spec.containers[0].volumeMounts.add(name="site", mountPath="/site")
    return pod


def begun(pod: o.Pod, *known: o.ConfigMap) -> Driver:
    objects = MemoryObjects()
    for one in known:
        objects.put(one)
    driver = Driver(pod, objects=objects)
    driver.begin()
    driver.settle()
    return driver


def content(step: i.PrepareVolumes | i.UpdateVolumes) -> bytes:
    (spec,) = step.specs
    assert isinstance(spec.source, Files)
    return spec.source.files["index"].content


def test_b68_volumes_are_there_before_the_first_start_and_mounted() -> None:
    driver = begun(pod_with_volume(), config_map("one"))
    kinds = [type(one) for one in driver.given]
    assert kinds.index(i.Attach) < kinds.index(i.PrepareVolumes) < kinds.index(i.Start)
    assert content(driver.last(i.PrepareVolumes)) == b"one"
    (mount,) = driver.last(i.Start).spec.mounts
    assert (mount.source, mount.target, mount.read_only) == ("/volumes/site", "/site", True)


def test_b58_a_missing_config_map_holds_the_pod_back_until_it_comes() -> None:
    driver = begun(pod_with_volume())
    waiting = driver.container.state.waiting
    assert "ConfigMap default/web" in waiting.message and "spec.volumes[0]" in waiting.message
    assert driver.status.phase == "Pending" and driver.count(i.PrepareVolumes) == 0
    driver.objects.put(config_map("one"))
    driver.send(i.ObjectsChanged())
    driver.settle()
    assert driver.status.phase == "Running"


def test_b54_a_missing_reference_in_env_holds_the_container_back_and_costs_no_attempt() -> None:
    pod = make_pod()
    variable = pod.spec.containers[0].env.add(name="INDEX")
    variable.valueFrom.configMapKeyRef.name, variable.valueFrom.configMapKeyRef.key = "web", "index"
    driver = begun(pod)
    waiting = driver.container.state.waiting
    assert waiting.reason == "CreateContainerConfigError" and "ConfigMap default/web" in waiting.message
    assert driver.count(i.Start) == 0 and not driver.open and not driver.timers
    driver.objects.put(config_map("found"))
    driver.send(i.ObjectsChanged())
    start = driver.last(i.Start)
    assert (start.spec.id.attempt, start.spec.env["INDEX"]) == (0, "found")


def test_b59_a_changed_config_map_reaches_the_volume_of_a_running_pod_once() -> None:
    driver = begun(pod_with_volume(), config_map("one"))
    driver.send(i.ObjectsChanged())
    assert driver.count(i.UpdateVolumes) == 0, "nothing has changed"
    driver.objects.put(config_map("two"))
    driver.send(i.ObjectsChanged())
    driver.objects.put(config_map("three"))
    driver.send(i.ObjectsChanged())
    driver.settle()
    assert [content(step) for step in driver.given if isinstance(step, i.UpdateVolumes)] == [b"two", b"three"]
    driver.send(i.ObjectsChanged())
    assert not driver.open


def test_an_update_that_failed_is_tried_again() -> None:
    driver = begun(pod_with_volume(), config_map("one"))
    driver.objects.put(config_map("two"))
    driver.send(i.ObjectsChanged())
    driver.failed(i.UpdateVolumes, "FailedMount", "no space left")
    assert driver.status.phase == "Running" and driver.container.ready
    driver.pass_time(1)
    driver.settle()
    assert driver.count(i.UpdateVolumes) == 2 and not driver.open


def test_a_config_map_that_goes_leaves_what_a_running_pod_has() -> None:
    driver = begun(pod_with_volume(), config_map("one"))
    driver.objects.remove("ConfigMap", "default", "web")
    driver.send(i.ObjectsChanged())
    assert not driver.open and driver.container.ready


def test_volumes_that_cannot_be_made_say_why_and_are_tried_again() -> None:
    driver = Driver(pod_with_volume(), objects=MemoryObjects())
    driver.objects.put(config_map("one"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.PrepareVolumes))
    driver.failed(i.PrepareVolumes, "FailedMount", "no space is left on the node's disk")
    waiting = driver.container.state.waiting
    assert (waiting.reason, waiting.message) == ("FailedMount", "no space is left on the node's disk")
    driver.pass_time(1)
    driver.settle()
    assert driver.status.phase == "Running"


def test_volumes_are_freed_after_the_sandbox_and_before_the_end_is_reported() -> None:
    driver = begun(pod_with_volume(), config_map("one"))
    driver.send(i.Assigned(deleted(driver.machine.pod)))
    driver.settle()
    driver.exit(0)
    driver.settle(keep=lambda step: isinstance(step, i.FreeVolumes))
    assert driver.count(i.RemoveSandbox) == 1 and not driver.ended
    driver.settle()
    assert driver.ended


def test_a_finished_pod_gives_its_volumes_back_at_once() -> None:
    pod = pod_with_volume()
    pod.spec.restartPolicy = "Never"
    driver = begun(pod, config_map("one"))
    driver.exit(0)
    driver.settle()
    assert driver.count(i.FreeVolumes) == 1 and driver.count(i.RemoveSandbox) == 0


def test_the_next_agent_brings_the_volumes_of_running_pods_up_to_date() -> None:
    pod = pod_with_volume()
    driver = Driver(pod, objects=MemoryObjects())
    driver.objects.put(config_map("changed meanwhile"))
    driver.machine = PodMachine(record_of(pod), NODE, saved=True, objects=driver.objects)
    state = ContainerState(ContainerID(UID, "app", 0), 7, driver.now, 1, None)
    driver.send(i.Begin([state], "/run/net", "10.244.0.2", {"app": IMAGE}))
    assert content(driver.last(i.PrepareVolumes)) == b"changed meanwhile"
    driver.settle()
    assert driver.count(i.Start) == 0 and driver.container.ready


def test_pull_secrets_are_used_and_a_new_one_ends_the_wait() -> None:
    pod = make_pod()
    pod.spec.imagePullSecrets.add(name="registry")
    driver = Driver(pod, images={}, objects=MemoryObjects())
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.PullImage))
    assert driver.last(i.PullImage).credentials == ()
    driver.failed(i.PullImage, "Unauthorized", "authentication required")
    message = driver.container.state.waiting.message
    assert "authentication required" in message and "Secret default/registry" in message
    secret = o.Secret(apiVersion="v1", kind="Secret", type="kubernetes.io/dockerconfigjson")
    secret.metadata.name, secret.metadata.namespace = "registry", "default"
    secret.data[".dockerconfigjson"] = b'{"auths": {"r.example": {"username": "u", "password": "hidden"}}}'
    driver.objects.put(secret)
    driver.send(i.ObjectsChanged())
    driver.settle(keep=lambda step: isinstance(step, i.PullImage))
    step = driver.last(i.PullImage)
    assert [(one.registry, one.username, one.password) for one in step.credentials] == [("r.example", "u", "hidden")]
    assert "hidden" not in repr(step)
