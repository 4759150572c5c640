"""What the cluster refuses before it runs anything: dangerous pods, foreign kernel settings, half references."""

from __future__ import annotations

import json

from tests.behaviours.world import World, container, pod
from tests.devcluster import until

FREE = "the label pod-security.kubernetes.io/enforce=privileged on it would allow this"


def test_b47_a_namespace_without_a_label_refuses_what_leaves_the_container(world: World) -> None:
    told = world.refused(
        pod(
            "p",
            container("true", securityContext={"privileged": True}),
            hostNetwork=True,
            volumes=[{"name": "root", "hostPath": {"path": "/"}}],
        )
    )
    for path in ("hostNetwork", "volumes[0].hostPath", "containers[0].securityContext.privileged"):
        assert f"spec.{path}: is not allowed" in told
    assert told.count(FREE) == 1  # for all three


def test_b47_a_deployment_whose_namespace_became_stricter_says_so_and_goes_on_when_freed(world: World) -> None:
    world.label(pod_security="privileged")
    template = {"metadata": {"labels": {"app": "d"}}, "spec": pod("", container("sleep 1000"), hostPID=True)["spec"]}
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "d"}}, "template": template}
    world.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
    world.label(pod_security="baseline")
    world.shoal("scale", "deploy/d", "--replicas", "1")

    def failure() -> str:
        conditions = world.get("deploy", "d").get("status", {}).get("conditions", [])
        return next((str(found["message"]) for found in conditions if found["type"] == "ReplicaFailure"), "")

    until(lambda: "" if failure() else "the Deployment does not say why it makes no pod", 30)
    assert "spec.template.spec.hostPID: is not allowed" in failure()
    assert "FailedCreate" in world.shoal("events")
    assert json.loads(world.shoal("get", "pods", "-o", "json"))["items"] == []
    world.label(pod_security="privileged")
    until(lambda: "" if world.get("deploy", "d")["status"].get("readyReplicas") == 1 else "it makes no pod", 60)
    assert failure() == ""


def test_b49_settings_of_the_whole_machine_are_refused_and_unsafe_ones_too(world: World) -> None:
    def asking(name: str) -> str:
        sysctls = [{"name": name, "value": "1"}]
        return world.refused(pod("p", container("true"), securityContext={"sysctls": sysctls}))

    assert '"vm.swappiness" does not belong to a pod, but to the whole machine' in asking("vm.swappiness")
    assert "sysctls[0].name: must be one of kernel.shm_rmid_forced" in asking("net.core.somaxconn")
    assert FREE in asking("kernel.shmmax")


def test_b53_an_unknown_field_of_the_pod_is_refused_with_those_that_there_are(world: World) -> None:
    env = [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podip"}}}]
    told = world.refused(pod("p", container("true", env=env)))
    assert 'spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: "status.podip" is no field of a pod' in told
    assert 'did you mean "status.podIP"? there are metadata.name, ' in told


def test_b40_a_deadline_may_be_set_later_and_lowered_but_not_raised(world: World) -> None:
    world.apply(pod("p", container("sleep 1000")))
    for seconds in (900, 800):
        world.apply(pod("p", container("sleep 1000"), activeDeadlineSeconds=seconds))
    told = world.refused(pod("p", container("sleep 1000"), activeDeadlineSeconds=801))
    assert "spec.activeDeadlineSeconds: can only be lowered: it is 800" in told


def test_b44_the_generation_grows_with_the_spec_only(world: World) -> None:
    world.apply(pod("p", container("sleep 1000")))
    assert world.pod("p")["metadata"]["generation"] == 1
    world.apply(pod("p", container("sleep 1000"), labels={"a": "b"}))
    assert world.pod("p")["metadata"]["generation"] == 1
    world.apply(pod("p", container("sleep 1000"), labels={"a": "b"}, activeDeadlineSeconds=900))
    assert world.pod("p")["metadata"]["generation"] == 2
    world.until("p", "observed", lambda found: found["status"].get("observedGeneration") == 2)
