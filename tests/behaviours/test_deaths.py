"""Death certificates and `shoal why` on a real cluster: what the kernel, the probes and the container itself have done.

They belong to B16 (why a run ended is kept) and B82 (a pod tells why it waits).
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests import images
from tests.behaviours.world import (
    IMAGE,
    POD_SECONDS,
    Object,
    World,
    busybox_image,
    config_map,
    container,
    deaths,
    pod,
    why,
)
from tests.devcluster import until

EAT = "dd if=/dev/zero of=/dev/null bs=64M count=1"  # its buffer is more than the limit
LIMIT = {"resources": {"limits": {"memory": "16Mi"}}}
SECONDS = POD_SECONDS
READY = {"exec": {"command": ["true"]}, "periodSeconds": 1}


def once(world: World, script: str, **fields: Any) -> Object:
    """The one certificate of a pod that runs once."""
    world.run(pod("p", container(script, **fields), restartPolicy="Never"))
    (death,) = deaths(world)
    return death


def test_b16_a_first_process_killed_for_memory_says_how_much_it_used(world: World) -> None:
    death = once(world, f"exec {EAT}", **LIMIT)
    assert (death["reason"], death["signal"], death["exitCode"]) == ("OOMKilled", 9, 137)
    assert int(death["resources"]["memoryLimitBytes"]) == 16 << 20
    assert int(death["resources"]["peakMemoryBytes"]) > 15 << 20 and int(death["resources"]["oomKills"]) >= 1
    assert "of its limit of 16Mi; raise resources.limits.memory" in why(world)


def test_b16_a_child_killed_for_memory_is_named_though_the_first_process_ended_by_itself(world: World) -> None:
    first = "echo 1000 > /proc/self/oom_score_adj"  # else the kernel may choose the shell
    death = once(world, f"( {first}; exec {EAT} ); echo child ended with $?; exit 1", **LIMIT)
    assert (death["reason"], death.get("signal", 0), death["exitCode"]) == ("OOMKilled", 0, 1)
    assert death["logTail"][-1] == "child ended with 137"
    assert "1 process of it for memory" in why(world)


def test_b16_an_exit_code_is_told_with_the_last_lines(world: World) -> None:
    script = "i=0; while [ $i -lt 80 ]; do echo line $i; i=$((i+1)); done; echo out of luck >&2; exit 42"
    death = once(world, script)
    assert death["exitCode"] == 42
    assert death["logTail"] == [f"line {n}" for n in range(31, 80)] + ["out of luck"]
    said = why(world)
    assert "exit code 42" in said and "| out of luck" in said
    assert death["image"].endswith("busy:1") and death["imageID"].startswith("sha256:")
    described = world.shoal("describe", "pod", "p")
    assert "Last Death:" in described and "shoal why pod/p" in described


def test_b16_a_probe_that_killed_tells_its_tries(world: World) -> None:
    probe = {"exec": {"command": ["sh", "-c", "echo not well; exit 3"]}, "periodSeconds": 1, "failureThreshold": 2}
    world.apply(pod("p", container("exec sleep 1000", livenessProbe=probe)))
    death = deaths(world)[0]
    assert death["reason"] == "Unhealthy"
    assert [one.get("passed", False) for one in death["probes"]] == [False, False]
    assert all("not well" in one["message"] for one in death["probes"])
    assert "its liveness probe failed 2 times in a row" in why(world)


def test_b16_each_failed_run_has_one_certificate_and_a_good_one_has_none(world: World) -> None:
    world.apply(pod("p", container("exit 7"), container("exit 0", "fine"), restartPolicy="OnFailure"))
    found = deaths(world, count=2)
    assert {(one["container"], one["exitCode"]) for one in found} == {("main", 7)}
    assert [one.get("attempt", 0) for one in found] == list(range(len(found)))
    wanted = ("CrashLoopBackOff", "it starts again at")
    until(lambda: "" if all(words in (said := why(world)) for words in wanted) else said, SECONDS)


def test_b16_a_changed_image_is_told_as_what_is_new(world: World) -> None:
    other = "busy:2"
    two = images.write(world.folder, busybox_image(other, User="1001"), "two.tar")
    world.cluster.shoal("image", "load", str(two))
    here: Object = {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}  # what was healthy is known to its node
    world.apply(pod("p", container("sleep 1000", readinessProbe=READY), **here))
    world.ready("p")
    before = world.status("p")["imageID"]
    world.shoal("delete", "pod", "p", "--wait")
    token = [{"name": "TOKEN", "value": "hunter2"}]
    world.apply(pod("p", container("id -u; exit 3", image=other, readinessProbe=READY, env=token), **here))
    death = died_with(world, 3)
    assert death["logTail"] == ["1001"], "it ran from the other image"
    assert death["imageID"] != before
    assert f"image: {IMAGE} -> {other}" in death["changes"]
    assert {"manifest: command changed", "manifest: env[TOKEN] added"} <= set(death["changes"])
    assert "hunter2" not in json.dumps(death)
    assert other in why(world)


def test_b16_a_changed_config_map_is_told_by_its_key(world: World) -> None:
    world.apply(config_map("settings", {"MODE": "good", "OTHER": "same"}))
    script = (
        'test "$MODE" = good || { echo "mode $MODE is unknown"; exit 4; }; '
        "until [ -e /tmp/end ]; do sleep 0.1; done; exit 6"
    )
    fields: Object = {"envFrom": [{"configMapRef": {"name": "settings"}}], "readinessProbe": READY}
    world.apply(pod("p", container(script, **fields)))
    world.ready("p")
    world.apply(config_map("settings", {"MODE": "better", "OTHER": "same"}))
    until(lambda: restarted_badly(world), SECONDS)
    death = died_with(world, 4)
    assert death["changes"] == ["ConfigMap settings: key MODE changed"]
    assert death["logTail"] == ["mode better is unknown"]
    assert "lastHealthyAt" in death
    assert "ConfigMap settings: key MODE changed" in why(world)


def died_with(world: World, code: int) -> Object:
    """The certificate of a run that ended with this code."""

    def found() -> list[Object]:
        return [one for one in deaths(world, count=0) if one["exitCode"] == code]

    until(lambda: "" if found() else f"nothing has ended with {code}", SECONDS)
    return found()[0]


def restarted_badly(world: World) -> str:
    """Ends the run until one begins with what is new: the node hears of a change a moment later."""
    if any(one["exitCode"] == 4 for one in deaths(world, count=0)):
        return ""
    world.attempt("exec", "p", "--", "touch", "/tmp/end")
    return "it has not run with the changed ConfigMap yet"


def test_b16_a_pod_that_is_gone_is_still_explained(world: World) -> None:
    once(world, "echo good bye; exit 9")
    node = world.pod("p")["spec"]["nodeName"]
    world.shoal("delete", "pod", "p", "--wait")
    said = why(world)
    assert f"pod/p is gone; it ran on node {node}" in said
    assert "exit code 9" in said and "| good bye" in said
    tree = json.loads(world.shoal("why", "pod/p", "-o", "json"))
    assert tree["wrong"] and tree["deaths"][0]["exitCode"] == 9
    never = world.attempt("why", "pod/never")
    assert never.returncode == 1 and "not found" in never.stderr


def test_b16_a_deleted_pod_is_no_death_unless_it_ignores_its_signal(world: World) -> None:
    world.apply(
        pod(
            "polite",
            container("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"),
            terminationGracePeriodSeconds=60,
        ),
        pod("deaf", container("trap '' TERM; echo up; while :; do sleep 0.1; done")),
    )
    for name in ("polite", "deaf"):
        world.said(name, "up")
        world.shoal("delete", "pod", name, "--wait")
    (death,) = deaths(world, "deaf")
    assert death["reason"] == "KilledAfterGrace" and death["signal"] == 9
    assert deaths(world, "polite", count=0) == []
    said = why(world, "deaf")
    assert "was deleted" in said and "ignores the stop signal" in said


def test_b40_a_deadline_is_the_cause_of_its_deaths(world: World) -> None:
    world.run(pod("p", container("exec sleep 1000"), activeDeadlineSeconds=5, restartPolicy="Never"))
    (death,) = deaths(world)
    assert death["reason"] == "DeadlineExceeded"
    assert "activeDeadlineSeconds" in death["cause"] and "DeadlineExceeded" in why(world)


def test_b16_a_command_that_cannot_be_started_is_a_death_with_the_reason(world: World) -> None:
    world.run(pod("p", container(["/no/such/program"]), restartPolicy="Never"))
    (death,) = deaths(world)
    assert death["exitCode"] in (127, 128) and "startedAt" not in death
    assert "/no/such/program" in death["message"] and "could not be started" in why(world)


def test_b95_an_agent_killed_at_the_same_moment_still_tells_it_once(world: World) -> None:
    world.apply(pod("p", container("echo here; sleep 1; echo gone; exit 5"), restartPolicy="Never"))
    world.until("p", "placed", lambda found: found["spec"]["nodeName"])
    agent = world.cluster.part(f"agent-{world.pod('p')['spec']['nodeName']}")
    assert agent is not None
    until(lambda: "" if "gone" in world.logs("p") else "it still runs", SECONDS)
    os.kill(agent.pid, signal.SIGKILL)
    world.phase("p", "Failed")
    (death,) = deaths(world)
    assert (death["exitCode"], death["logTail"]) == (5, ["here", "gone"])


def test_b82_why_tells_what_a_pod_waits_for(world: World) -> None:
    world.apply(
        pod("wide", container("sleep 1000", resources={"requests": {"cpu": "900"}})),
        pod("unset", container("sleep 1000", env=[{"name": "A", "valueFrom": key("missing", "a")}])),
        pod("well", container("exec sleep 1000")),
        pod("slow", container("exec sleep 1000", readinessProbe={"exec": {"command": ["false"]}, "periodSeconds": 1})),
    )
    world.ready("well")
    until(lambda: "" if "nsufficient cpu" in why(world, "wide") else why(world, "wide"), SECONDS)
    until(lambda: "" if "ConfigMap" in (said := why(world, "unset")) and "missing" in said else said, SECONDS)
    until(lambda: "" if "readiness probe failed" in (said := why(world, "slow")) else said, SECONDS)
    assert "and ready: nothing is wrong" in why(world, "well")


def key(name: str, of: str) -> Object:
    return {"configMapKeyRef": {"name": name, "key": of}}
