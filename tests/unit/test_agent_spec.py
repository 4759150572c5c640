"""From pod and image to what the runtime starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.agent.images.port import Image, ImageConfig
from shoal.agent.objects import MemoryObjects
from shoal.agent.pods.config import environment
from shoal.agent.pods.spec import (
    NodeFacts,
    container_spec,
    expand,
    hostname,
    managed_files,
    oom_score_adj,
    pod_limits,
    sandbox_spec,
)
from shoal.agent.runtime.port import ContainerSpec, Limits, StartError
from shoal.proto.qos import qos_class
from shoal.proto.v1 import objects_pb2 as o
from tests.agents import IMAGE, NODE, make_pod

GIB = 1 << 30


def spec_of(pod: o.Pod, image: Image = IMAGE, attempt: int = 0, node: NodeFacts = NODE) -> ContainerSpec:
    container = pod.spec.containers[0]
    env = environment(pod, container, MemoryObjects(), node, "10.244.0.2")
    return container_spec(pod, container, image, attempt, "10.244.0.2", node, env)


def image_with(config: ImageConfig) -> Image:
    return Image("sha256:1", "sha256:2", ("app:1",), 1, ("/l1", "/l2"), config)


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        pytest.param([], [], ["/app", "serve"], id="B1"),
        pytest.param([], ["x", "y"], ["/app", "x", "y"], id="B2"),
        pytest.param(["/bin/sh"], [], ["/bin/sh"], id="B3"),
        pytest.param(["/bin/sh"], ["-c", "true"], ["/bin/sh", "-c", "true"], id="B4"),
    ],
)
def test_command_and_args_replace_entrypoint_and_cmd(command: list[str], args: list[str], argv: list[str]) -> None:
    pod = make_pod()
    pod.spec.containers[0].command.extend(command)
    pod.spec.containers[0].args.extend(args)
    assert list(spec_of(pod).argv) == argv


def test_no_command_anywhere_is_explained() -> None:
    with pytest.raises(StartError, match="neither ENTRYPOINT nor CMD") as caught:
        spec_of(make_pod(), image_with(ImageConfig()))
    assert caught.value.reason == "CreateContainerError"


def test_b5_to_b7_variables_expand_in_env_command_and_args() -> None:
    pod = make_pod()
    container = pod.spec.containers[0]
    for name, value in (("A", "1"), ("B", "$(A)2"), ("C", "$(LATER) $$(A) $(NOPE)"), ("LATER", "x")):
        container.env.add(name=name, value=value)
    container.command.extend(["/run-$(B)"])
    container.args.extend(["$$(A)", "$(HOSTNAME)", "$(A)"])
    spec = spec_of(pod)
    assert spec.env["B"] == "12"
    assert spec.env["C"] == "$(LATER) $(A) $(NOPE)"
    assert list(spec.argv) == ["/run-12", "$(A)", "$(HOSTNAME)", "1"]


@pytest.mark.parametrize(
    ("text", "result"),
    [("$", "$"), ("$$", "$"), ("$(A", "$(A"), ("$x", "$x"), ("$(A)$(A)", "11"), ("$$$(A)", "$1"), ("a$()b", "a$()b")],
)
def test_expansion_leaves_what_is_no_reference(text: str, result: str) -> None:
    assert expand(text, {"A": "1"}) == result


def test_the_environment_is_the_image_s_with_the_pod_s_over_it() -> None:
    pod = make_pod()
    pod.spec.containers[0].env.add(name="MODE", value="pod")
    image = image_with(ImageConfig(("/app",), env={"MODE": "image", "PATH": "/opt/bin", "X": "1"}, user="1000:1000"))
    env = spec_of(pod, image).env
    assert env == {"MODE": "pod", "PATH": "/opt/bin", "X": "1", "HOSTNAME": "web"}, "HOME stands in the image's passwd"
    assert spec_of(make_pod()).env["PATH"].startswith("/usr/local/sbin:")


def test_working_directory() -> None:
    image = image_with(ImageConfig(("/app",), working_dir="/srv"))
    pod = make_pod()
    assert spec_of(pod).cwd == "/"
    assert spec_of(pod, image).cwd == "/srv"
    pod.spec.containers[0].workingDir = "/tmp"
    assert spec_of(pod, image).cwd == "/tmp"


def test_b45_the_container_s_security_context_wins_over_the_pod_s() -> None:
    pod = make_pod()
    pod.spec.securityContext.runAsUser = 1000
    pod.spec.securityContext.runAsGroup = 2000
    pod.spec.securityContext.runAsNonRoot = True
    spec = spec_of(pod)
    assert (spec.run_as_user, spec.run_as_group, spec.run_as_non_root) == (1000, 2000, True)
    context = pod.spec.containers[0].securityContext
    context.runAsUser = 0
    context.runAsNonRoot = False
    spec = spec_of(pod)
    assert (spec.run_as_user, spec.run_as_group, spec.run_as_non_root) == (0, 2000, False)
    plain = spec_of(make_pod(), image_with(ImageConfig(("/app",), user="nginx")))
    assert (plain.user, plain.run_as_user, plain.run_as_group) == ("nginx", None, None)


def test_b50_run_as_non_root_with_user_0_is_refused() -> None:
    pod = make_pod()
    pod.spec.containers[0].securityContext.runAsNonRoot = True
    pod.spec.containers[0].securityContext.runAsUser = 0
    with pytest.raises(StartError, match="runAsNonRoot and runAsUser 0") as caught:
        spec_of(pod)
    assert caught.value.reason == "CreateContainerConfigError"


def test_privileges() -> None:
    pod = make_pod()
    spec = spec_of(pod)
    assert (spec.no_new_privs, spec.read_only_root, list(spec.drop_capabilities)) == (False, False, [])
    context = pod.spec.containers[0].securityContext
    context.allowPrivilegeEscalation = False
    context.readOnlyRootFilesystem = True
    context.capabilities.drop.extend(["ALL", "CAP_NET_BIND_SERVICE", "chown"])
    spec = spec_of(pod)
    assert (spec.no_new_privs, spec.read_only_root) == (True, True)
    assert list(spec.drop_capabilities) == ["ALL", "NET_BIND_SERVICE", "CHOWN"]
    context.allowPrivilegeEscalation = True
    assert spec_of(pod).no_new_privs is False


def resources(pod: o.Pod, amounts: dict[str, str], index: int = 0) -> o.Pod:
    """`amounts` such as {"limits_cpu": "1", "requests_memory": "64Mi"}."""
    for name, text in amounts.items():
        table, resource = name.split("_")
        getattr(pod.spec.containers[index].resources, table)[resource].text = text
    return pod


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, Limits(2, None, None, 4096, 1000)),
        ({"limits_cpu": "500m"}, Limits(512, 50_000, None, 4096, 999)),
        ({"requests_cpu": "100m"}, Limits(102, None, None, 4096, 999)),
        ({"requests_cpu": "1m", "limits_cpu": "1m"}, Limits(2, 1000, None, 4096, 999)),
        ({"limits_cpu": "2", "limits_memory": "1Gi"}, Limits(2048, 200_000, GIB, 4096, -997)),
        ({"requests_memory": "4Gi"}, Limits(2, None, None, 4096, 500)),
        ({"requests_memory": "8Gi"}, Limits(2, None, None, 4096, 3)),
        ({"limits_memory": "100M", "requests_memory": "50M"}, Limits(2, None, 100_000_000, 4096, 995)),
        ({"requests_cpu": "1000"}, Limits(262144, None, None, 4096, 999)),
    ],
)
def test_limits_follow_the_kubelet(given: dict[str, str], limits: Limits) -> None:
    assert spec_of(resources(make_pod(), given)).limits == limits


@pytest.mark.parametrize(
    ("first", "second", "qos"),
    [
        ({}, {}, "BestEffort"),
        ({"limits_cpu": "1", "limits_memory": "1Gi"}, {"limits_cpu": "1", "limits_memory": "1Gi"}, "Guaranteed"),
        ({"limits_cpu": "1", "limits_memory": "1Gi"}, {}, "Burstable"),
        ({"limits_cpu": "1", "limits_memory": "1Gi", "requests_cpu": "500m"}, {}, "Burstable"),
        ({"requests_memory": "1Mi"}, {}, "Burstable"),
        ({"limits_cpu": "0", "requests_memory": "0"}, {}, "BestEffort"),
    ],
)
def test_b43_qos_class(first: dict[str, str], second: dict[str, str], qos: str) -> None:
    pod = resources(resources(make_pod(containers=("a", "b")), first), second, 1)
    assert qos_class(pod.spec) == qos


def test_b43_an_init_container_that_asks_for_nothing_is_not_guaranteed() -> None:
    pod = resources(make_pod(), {"limits_cpu": "1", "limits_memory": "1Gi"})
    assert qos_class(pod.spec) == "Guaranteed"
    pod.spec.initContainers.add(name="init")
    assert qos_class(pod.spec) == "Burstable"


def test_the_pod_s_cgroup_has_the_sums() -> None:
    pod = make_pod(containers=("a", "b"))
    resources(pod, {"limits_cpu": "1", "limits_memory": "1Gi"})
    assert pod_limits(pod, NODE) == Limits(1024, None, None, 4096)
    resources(pod, {"limits_cpu": "500m", "limits_memory": "1Gi", "requests_cpu": "100m"}, 1)
    assert pod_limits(pod, NODE) == Limits(1126, 150_000, 2 * GIB, 4096)
    pod.spec.overhead["cpu"].text, pod.spec.overhead["memory"].text = "500m", "1Gi"
    assert pod_limits(pod, NODE) == Limits(1638, 200_000, 3 * GIB, 4096)
    pod.spec.containers[1].resources.ClearField("limits")
    assert pod_limits(pod, NODE).memory_bytes is None, "an overhead alone is no limit"


def test_the_less_is_requested_the_sooner_it_is_killed() -> None:
    pod = resources(make_pod(), {"requests_memory": "1Gi"})
    assert oom_score_adj(pod, pod.spec.containers[0], 8 * GIB) == 875


def test_b20_managed_files() -> None:
    files = spec_of(make_pod()).files
    assert files["/etc/hosts"].endswith("10.244.0.2\tweb\n") and "127.0.0.1\tlocalhost\n" in files["/etc/hosts"]
    assert files["/etc/hostname"] == "web\n"
    assert files["/etc/resolv.conf"] == "nameserver 10.0.0.53\n"
    bare = managed_files(make_pod(), "", NodeFacts("n1", "10.0.0.1", 1, "/logs"))
    assert "/etc/resolv.conf" not in bare and "web" not in bare["/etc/hosts"]


def test_a_long_name_is_cut_to_a_host_name() -> None:
    pod = make_pod(name="a" * 62 + "-" + "b" * 20)
    assert hostname(pod) == "a" * 62
    assert sandbox_spec(pod, NODE).hostname == "a" * 62


def test_each_run_has_a_log_of_its_own() -> None:
    pod = make_pod()
    assert spec_of(pod, attempt=3).log_path == f"/logs/{pod.metadata.uid}/app/3.log"
    assert spec_of(pod, attempt=3).id.attempt == 3


def test_b20_names_of_a_pod_with_a_subdomain_and_on_the_node_s_network() -> None:
    pod = make_pod("web.one")
    assert hostname(pod) == "web.one"
    pod.spec.hostname, pod.spec.subdomain = "front", "svc"
    assert (
        "10.244.0.2\tfront.svc.default.svc.cluster.local\tfront\n"
        in managed_files(pod, "10.244.0.2", NODE)["/etc/hosts"]
    )
    pod.spec.setHostnameAsFQDN = True
    assert sandbox_spec(pod, NODE).hostname == "front.svc.default.svc.cluster.local"
    pod.spec.subdomain = "s" * 60
    with pytest.raises(StartError, match="shorten"):
        sandbox_spec(pod, NODE)
    pod.spec.hostNetwork = True
    own = replace(NODE, hosts="10.0.0.9\tneighbour")
    pod.spec.hostAliases.add(ip="192.0.2.1", hostnames=["a", "b"])
    files = managed_files(pod, "10.0.0.1", own)
    assert files["/etc/hosts"] == "10.0.0.9\tneighbour\n192.0.2.1\ta\tb\n" and files["/etc/hostname"] == "n1\n"


def test_limits_of_a_pod_are_what_its_containers_have_at_one_time() -> None:
    pod = make_pod()
    wanted = {"init": 300, "proxy": 100, "late": 250}
    for name, cpu in wanted.items():
        container = pod.spec.initContainers.add(name=name, image="app:1")
        container.resources.limits["cpu"].text = f"{cpu}m"
    pod.spec.initContainers[1].restartPolicy = "Always"
    pod.spec.containers[0].resources.limits["cpu"].text = "200m"
    assert pod_limits(pod, NODE).cpu_quota_us == 35_000, "the sidecar with the init container after it"
    pod.spec.containers[0].resources.limits["cpu"].text = "400m"
    assert pod_limits(pod, NODE).cpu_quota_us == 50_000, "the app with the sidecar"
    del pod.spec.initContainers[0].resources.limits["cpu"]
    assert pod_limits(pod, NODE).cpu_quota_us is None


@pytest.mark.parametrize(
    ("kind", "path", "profile"),
    [("RuntimeDefault", "", ""), ("Unconfined", "", "unconfined"), ("Localhost", "a/b.json", "/profiles/a/b.json")],
)
def test_b52_the_seccomp_profile_of_the_container_goes_before_the_pod_s(kind: str, path: str, profile: str) -> None:
    node, pod = replace(NODE, seccomp_root="/profiles"), make_pod()
    pod.spec.securityContext.seccompProfile.type = "Unconfined"
    own = pod.spec.containers[0].securityContext.seccompProfile
    own.type, own.localhostProfile = kind, path
    assert spec_of(pod, node=node).seccomp == profile
    own.type, own.localhostProfile = "Localhost", "../shadow"
    with pytest.raises(StartError, match="localhostProfile"):
        spec_of(pod, node=node)
