"""Commands, environment, phases, messages and files of containers: B1 to B7, B10 to B16, B19 and B20."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.behaviours.world import Object, World, busybox_image, container, pod
from tests.devcluster import Cluster

TALKING = "talking:1"  # an image with an ENTRYPOINT and a CMD
ENTRYPOINT, CMD = ["/bin/echo", "entry"], ["cmd"]


@pytest.fixture(scope="module")
def talking(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("talking")
    archive = busybox_image(TALKING, Entrypoint=ENTRYPOINT, Cmd=CMD)
    cluster.shoal("image", "load", str(images.write(folder, archive, "talking.tar")))
    return TALKING


def said(world: World, image: str, **fields: Any) -> str:
    return world.output(pod("p", container(image=image, **fields))).strip()


def test_b1_no_command_and_no_args_run_the_image_s_own(world: World, talking: str) -> None:
    assert said(world, talking) == "entry cmd"


def test_b2_args_alone_replace_cmd(world: World, talking: str) -> None:
    assert said(world, talking, args=["mine"]) == "entry mine"


def test_b3_command_alone_replaces_entrypoint_and_drops_cmd(world: World, talking: str) -> None:
    assert said(world, talking, command=["/bin/echo", "alone"]) == "alone"


def test_b4_command_and_args_replace_both(world: World, talking: str) -> None:
    assert said(world, talking, command=["/bin/echo", "both"], args=["of", "them"]) == "both of them"


def test_b5_variables_expand_from_earlier_ones_in_env(world: World) -> None:
    env = [
        {"name": "EARLY", "value": "$(LATE)-$(EARLY)"},
        {"name": "LATE", "value": "got $(EARLY)"},
        {"name": "KEPT", "value": "$$(LATE)"},
    ]
    out = world.output(pod("p", container('echo "$EARLY|$LATE|$KEPT"', env=env)))
    assert out.strip() == "$(LATE)-$(EARLY)|got $(LATE)-$(EARLY)|$(LATE)"


def test_b6_variables_expand_in_the_command(world: World) -> None:
    words = ["sh", "-c", "echo '$(COLOUR) $$(COLOUR) $(NOBODY)'"]
    out = world.output(pod("p", container(words, env=[{"name": "COLOUR", "value": "blue"}])))
    assert out.strip() == "blue $(COLOUR) $(NOBODY)"


def test_b7_variables_expand_in_the_args(world: World) -> None:
    args = ["$(COLOUR)", "$$(COLOUR)"]
    made = container(["echo"], args=args, env=[{"name": "COLOUR", "value": "blue"}])
    assert world.output(pod("p", made)).strip() == "blue $(COLOUR)"


@pytest.mark.parametrize(
    ("policy", "code", "phase"), [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")]
)
def test_b10_a_pod_ends_as_its_policy_says(world: World, policy: str, code: int, phase: str) -> None:
    found = world.run(pod("p", container(f"exit {code}"), restartPolicy=policy))
    assert found["status"]["phase"] == phase
    status = world.status("p")
    assert (status["restartCount"], status["ready"]) == (0, False)
    assert status["state"]["terminated"]["exitCode"] == code


@pytest.mark.parametrize(("policy", "code"), [("Always", 0), ("Always", 1), ("OnFailure", 1)])
def test_b10_a_pod_goes_on_as_its_policy_says(world: World, policy: str, code: int) -> None:
    script = f"test -e /once/x && exec sleep 600; touch /once/x; exit {code}"
    made = container(script, volumeMounts=[{"name": "once", "mountPath": "/once"}])
    world.apply(pod("p", made, restartPolicy=policy, volumes=[{"name": "once", "emptyDir": {}}]))
    world.until("p", "started again", lambda found: found["status"]["containerStatuses"][0]["restartCount"] == 1)
    found = world.ready("p")  # the first run may have been ready too, for a moment
    assert found["status"]["phase"] == "Running"
    status = world.status("p")
    assert (status["restartCount"], status["ready"]) == (1, True)
    assert status["lastState"]["terminated"]["exitCode"] == code


def ended(world: World, script: str, **fields: Any) -> Object:
    world.run(pod("p", container(script, **fields), restartPolicy="Never"))
    return dict(world.status("p")["state"]["terminated"])


def test_b11_the_termination_message_comes_from_its_file(world: World) -> None:
    assert ended(world, "printf done > /dev/termination-log")["message"] == "done"


def test_b12_a_failed_run_without_a_message_shows_the_end_of_its_log(world: World) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; exit 1"
    lines = ended(world, script, terminationMessagePolicy="FallbackToLogsOnError")["message"].splitlines()
    assert lines[-1] == "line 199" and len(lines) == 80


def test_b12_what_is_in_the_file_goes_before_the_log_and_success_shows_no_log(world: World) -> None:
    policy = "FallbackToLogsOnError"
    written = ended(world, "echo log; printf file > /dev/termination-log; exit 1", terminationMessagePolicy=policy)
    assert written["message"] == "file"
    world.shoal("delete", "pod", "p")
    assert "message" not in ended(world, "echo log", terminationMessagePolicy=policy)


def test_b13_a_user_that_is_not_root_writes_its_message_at_another_path(world: World) -> None:
    found = ended(
        world,
        "printf mine > /tmp/said; id -u",
        terminationMessagePath="/tmp/said",
        securityContext={"runAsUser": 1000},
    )
    assert found["message"] == "mine" and world.logs("p").strip() == "1000"


def test_b14_stdout_and_stderr_are_in_the_logs(world: World) -> None:
    assert world.output(pod("p", container("echo out; echo err >&2"))).split() == ["out", "err"]


def test_b15_a_failing_pod_can_be_deleted(world: World) -> None:
    world.apply(pod("p", container("exit 1")))
    world.waiting("p", "CrashLoopBackOff")
    world.shoal("delete", "pod", "p", "--wait")
    assert "p" not in world.shoal("get", "pods", "-o", "name")


def test_b15_a_pod_whose_image_is_nowhere_can_be_deleted(world: World) -> None:
    world.apply(pod("p", container("true", image="nowhere.invalid/none:1")))
    message = world.waiting("p", "ImagePullBackOff")
    assert "nowhere.invalid" in message and "next try at" in message
    world.shoal("delete", "pod", "p", "--wait")
    assert "p" not in world.shoal("get", "pods", "-o", "name")


def test_b16_reason_code_and_signal_are_kept_also_of_the_run_before(world: World) -> None:
    world.apply(pod("p", container("exec sleep 600")))
    uid = world.ready("p")["metadata"]["uid"]
    os.kill(world.cluster.containers()[uid, "main"].process.pid, signal.SIGKILL)
    world.until("p", "restarted", lambda _: world.status("p")["restartCount"] == 1)
    before = world.status("p")["lastState"]["terminated"]
    assert (before["reason"], before["exitCode"], before["signal"]) == ("Error", 137, 9)
    assert before["finishedAt"] and before["containerID"].endswith("/main/0")
    world.run(pod("done", container("exit 5"), restartPolicy="Never"))
    last = world.status("done")["state"]["terminated"]
    assert (last["reason"], last["exitCode"]) == ("Error", 5)


def test_b19_host_aliases_are_in_the_hosts_file(world: World) -> None:
    aliases = [{"ip": "192.0.2.7", "hostnames": ["old.example", "older.example"]}]
    out = world.output(pod("p", container("cat /etc/hosts; grep -c . /etc/hosts"), hostAliases=aliases))
    assert "192.0.2.7\told.example\tolder.example" in out.splitlines()


def test_b20_the_hosts_file_names_the_pod(world: World) -> None:
    made = pod("p", container("cat /etc/hosts; hostname; hostname -i"), hostname="front", subdomain="web")
    lines = world.output(made).splitlines()
    address = world.pod("p")["status"]["podIP"]
    assert f"{address}\tfront.web.{world.namespace}.svc.cluster.local\tfront" in lines
    assert lines[-2:] == ["front", address]


def test_b20_a_host_name_may_be_the_whole_one(world: World) -> None:
    made = pod("p", container("hostname"), subdomain="web", setHostnameAsFQDN=True)
    assert world.output(made).strip() == f"p.web.{world.namespace}.svc.cluster.local"


def test_b20_a_pod_on_the_node_s_network_has_the_node_s_own_hosts_file(world: World) -> None:
    world.label(pod_security="privileged")
    made = pod("p", container("cat /etc/hosts; echo ---; hostname"), hostNetwork=True)
    out, _, host = world.output(made).partition("---\n")
    found = world.pod("p")
    assert out.strip() == Path("/etc/hosts").read_text().strip()
    assert host.strip() == found["spec"]["nodeName"]
    assert found["status"]["podIP"] == found["status"]["hostIP"]
