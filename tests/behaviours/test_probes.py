"""Probes: B29 to B38. What was asked is counted inside the container, by the one that was asked."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import pytest

from tests.behaviours.world import POD_SECONDS, Object, World, container, pod
from tests.devcluster import until

TRIES = 4  # that must be seen before "it did not restart" means something
OFTEN = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20}  # a busy machine is slow to answer
WEB = "echo fine > /data/index.html; exec httpd -f -vv -p 8080 -h /data"
TCP = "exec nc -ll -p 8081 -e sh -c 'echo asked >> /data/tries'"

# A gRPC server of the shell's: HTTP/2 frames (RFC 9113) by hand, the answer without compression. SETTINGS go first, the
# rest when the call has come.
SETTINGS, SETTINGS_ACK = b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0"
CALL_BYTES = 250  # of what a client sends for a health check, at least


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + payload


def literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def health_answer(status: int) -> bytes:
    headers = b"\x88" + literal(b"content-type", b"application/grpc")  # :status 200
    message = b"\0\0\0\0\2\x08" + bytes([status])
    trailers = literal(b"grpc-status", b"0")
    return SETTINGS_ACK + frame(1, 4, headers) + frame(0, 0, message) + frame(1, 5, trailers)


def escaped(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


SERVING, NOT_SERVING = health_answer(1), health_answer(2)
GRPC = f"""
printf '{escaped(SERVING)}' > /data/answer
cat > /data/serve <<'END'
printf '{escaped(SETTINGS)}'; head -c {CALL_BYTES} > /dev/null; cat /data/answer; echo asked >> /data/tries; sleep 1
END
exec nc -ll -p 9000 -e sh /data/serve
"""


def restarts(world: World, name: str = "p") -> int:
    return int(world.status(name).get("restartCount", 0))


def restarted(world: World, name: str = "p") -> Object:
    """The status once the container runs again."""
    world.until(name, "restarted", lambda found: restart_of(found) >= 1)
    return world.status(name)


def restart_of(found: Object) -> int:
    statuses = found.get("status", {}).get("containerStatuses", [])
    return int(statuses[0].get("restartCount", 0)) if statuses else 0


def tries(world: World, name: str = "p") -> int:
    """Times that the container was asked, as itself has counted."""
    return len(world.exec(name, "sh", "-c", "cat /data/tries 2> /dev/null; true").split())


def asked(world: World, count: int = TRIES, name: str = "p") -> None:
    def problem() -> str:
        found = tries(world, name)
        return "" if found >= count else f"asked {found} times, not {count}"

    until(problem, POD_SECONDS)


def probed(script: str, which: str, probe: Mapping[str, Any], **fields: Any) -> Object:
    fields[f"{which}Probe"] = {**OFTEN, **probe}
    return pod("p", container(script, **fields))


def served(manifest: Object, probe: Mapping[str, Any]) -> Object:
    """The same pod, whose liveness counts from when it first answers: the first failure is the last."""
    manifest["spec"]["containers"][0]["startupProbe"] = {**OFTEN, "failureThreshold": 1000, **probe}
    return manifest


def lives_on(world: World, script: str, probe: Mapping[str, Any]) -> None:
    world.apply(served(probed(script, "liveness", probe), probe))
    world.ready("p")
    asked(world, tries(world) + TRIES)
    assert restarts(world) == 0


def dies(world: World, script: str, probe: Mapping[str, Any], *break_it: str) -> None:
    """Passing at first; broken from within it is killed and started again. Without `break_it` it never passes."""
    manifest = probed(script, "liveness", probe)
    world.apply(served(manifest, probe) if break_it else manifest)
    if break_it:
        world.ready("p")
        world.exec("p", "sh", "-c", *break_it)
    found = restarted(world)
    # The shell and nc end by TERM, or by KILL when their time is over.
    assert found["lastState"]["terminated"]["exitCode"] in (143, 137)


def test_b29_a_failing_exec_liveness_restarts(world: World) -> None:
    probe = {"exec": {"command": ["cat", "/data/health"]}}
    dies(world, "touch /data/health; exec sleep 1000", probe, "rm /data/health")


def test_b29_an_exec_liveness_that_does_not_end_restarts_and_leaves_nothing(world: World) -> None:
    hang = "trap '' TERM; setsid sleep 1001 & sleep 1002"
    probe = {"exec": {"command": ["sh", "-c", f"test -f /data/second || {{ {hang}; }}"]}, "timeoutSeconds": 3}
    manifest = probed(
        "test -f /data/first && touch /data/second; touch /data/first; exec sleep 1000", "liveness", probe
    )
    manifest["spec"]["volumes"] = [{"name": "d", "emptyDir": {}}]
    manifest["spec"]["containers"][0]["volumeMounts"] = [{"name": "d", "mountPath": "/data"}]
    world.apply(manifest)
    restarted(world)
    world.ready("p")
    assert "100" not in world.exec("p", "ps", "-o", "args").replace("sleep 1000", "")


def test_b30_a_passing_exec_liveness_does_not(world: World) -> None:
    lives_on(world, "exec sleep 1000", {"exec": {"command": ["sh", "-c", "echo asked >> /data/tries"]}})


def test_b31_a_failing_http_liveness_restarts(world: World) -> None:
    probe = {"httpGet": {"path": "/index.html", "port": "web"}}
    manifest = probed(WEB, "liveness", probe, ports=[{"name": "web", "containerPort": 8080}])
    world.apply(served(manifest, probe))
    world.ready("p")
    world.exec("p", "rm", "/data/index.html")  # 404
    assert "terminated" in restarted(world)["lastState"]


def test_b32_a_passing_http_liveness_does_not(world: World) -> None:
    probe = {"httpGet": {"path": "/index.html", "port": 8080}}
    world.apply(served(probed(WEB, "liveness", probe), probe))
    world.ready("p")
    before = world.logs("p").count("url:/index.html")

    def problem() -> str:
        found = world.logs("p").count("url:/index.html") - before
        return "" if found >= TRIES else f"asked {found} times"

    until(problem, POD_SECONDS)
    assert restarts(world) == 0


def test_b33_a_failing_tcp_liveness_restarts(world: World) -> None:
    dies(world, "exec sleep 1000", {"tcpSocket": {"port": 8081}})


def test_b33_a_passing_tcp_liveness_does_not(world: World) -> None:
    lives_on(world, TCP, {"tcpSocket": {"port": 8081}})


def test_b34_a_passing_grpc_liveness_does_not(world: World) -> None:
    lives_on(world, GRPC, {"grpc": {"port": 9000}})


def test_b34_a_failing_grpc_liveness_restarts(world: World) -> None:
    dies(world, GRPC, {"grpc": {"port": 9000}}, f"printf '{escaped(NOT_SERVING)}' > /data/answer")


def test_b35_the_restart_count_only_grows(world: World) -> None:
    world.apply(probed("exec sleep 1000", "liveness", {"exec": {"command": ["false"]}}))
    seen: list[int] = []

    def problem() -> str:
        seen.append(restarts(world))
        return "" if seen[-1] >= 2 else f"{seen[-1]} restarts"

    until(problem, POD_SECONDS)
    assert seen == sorted(seen)


def test_b36_not_ready_before_the_initial_delay(world: World) -> None:
    world.apply(probed("exec sleep 1000", "readiness", {"exec": {"command": ["true"]}, "initialDelaySeconds": 3}))
    found = world.ready("p")
    began = world.status("p")["state"]["running"]["startedAt"]
    assert seconds(ready_condition(found)["lastTransitionTime"]) - seconds(began) >= 3 - 1  # both are cut to seconds


def ready_condition(found: Object) -> Object:
    (condition,) = [one for one in found["status"]["conditions"] if one["type"] == "Ready"]
    return dict(condition)


def seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


def test_b37_never_ready_is_never_a_restart(world: World) -> None:
    script = "echo asked >> /data/tries; false"
    world.apply(probed("exec sleep 1000", "readiness", {"exec": {"command": ["sh", "-c", script]}}))
    world.phase("p", "Running")
    asked(world)
    status = world.status("p")
    assert (status["restartCount"], status["ready"]) == (0, False)


def test_b37_readiness_follows_the_container(world: World) -> None:
    world.apply(
        probed("touch /data/up; exec sleep 1000", "readiness", {"exec": {"command": ["test", "-f", "/data/up"]}})
    )
    world.ready("p")
    world.exec("p", "rm", "/data/up")
    world.until("p", "not ready", lambda found: ready_condition(found)["status"] == "False")
    world.exec("p", "touch", "/data/up")
    world.ready("p")
    assert restarts(world) == 0


def test_b38_a_startup_probe_holds_the_others_back(world: World) -> None:
    command: Mapping[str, Any] = {"command": ["sh", "-c", "echo asked >> /data/tries"]}
    startup: Object = {"startupProbe": {**OFTEN, "failureThreshold": 1000, "exec": {"command": ["sh", "-c", STARTUP]}}}
    others: Object = {"livenessProbe": {**OFTEN, "exec": command}, "readinessProbe": {**OFTEN, "exec": command}}
    world.apply(pod("p", container("exec sleep 1000", **startup, **others)))
    world.phase("p", "Running")

    def problem() -> str:
        found = world.exec("p", "sh", "-c", "cat /data/startup 2> /dev/null; true").split()
        return "" if len(found) >= TRIES else f"{len(found)} tries"

    until(problem, POD_SECONDS)
    assert tries(world) == 0
    status = world.status("p")
    assert (status["started"], status["ready"], status["restartCount"]) == (False, False, 0)
    world.exec("p", "touch", "/data/up")
    world.ready("p")
    asked(world)
    assert world.status("p")["started"] is True


STARTUP = "echo asked >> /data/startup; test -f /data/up"


def test_b38_a_startup_probe_that_fails_restarts(world: World) -> None:
    startup: Object = {"startupProbe": {**OFTEN, "failureThreshold": 2, "exec": {"command": ["false"]}}}
    world.apply(pod("p", container("exec sleep 1000", **startup)))
    assert "terminated" in restarted(world)["lastState"]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"httpGet": {"port": 0}}, "httpGet.port"),
        ({"tcpSocket": {"port": 80}, "exec": {"command": ["true"]}}, "livenessProbe"),
        ({"exec": {"command": ["true"]}, "periodSeconds": -1}, "periodSeconds"),
    ],
)
def test_b38_probes_that_make_no_sense_are_refused_with_their_place(
    world: World, probe: Mapping[str, Any], words: str
) -> None:
    assert words in world.refused(pod("p", container("exec sleep 1000", livenessProbe=dict(probe))))


def test_b29_the_events_tell_which_probe_failed_and_what_was_done(world: World) -> None:
    probe = {"exec": {"command": ["sh", "-c", "echo no answer; false"]}, "periodSeconds": 1, "failureThreshold": 1}
    world.apply(pod("p", container("sleep 1000", livenessProbe=probe)))
    restarted(world)

    def problem() -> str:
        text = world.shoal("events", "--for", "pod/p")
        wanted = ("Unhealthy", "Liveness probe failed: exit code 1: no answer", "Killing", "Started")
        return "" if all(word in text for word in wanted) else text

    until(problem, POD_SECONDS)
