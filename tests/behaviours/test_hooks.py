"""Lifecycle hooks: B25 to B28. A second pod, the witness, sees who called it and when."""

from __future__ import annotations

import time

import pytest

from tests.behaviours.world import POD_SECONDS, Object, World, container, pod
from tests.devcluster import until

WITNESS = "mkdir -p /data; for f in start hook term; do echo fine > /data/$f; done; exec httpd -f -vv -p 8080 -h /data"
GRACE = 60


@pytest.fixture
def witness(world: World) -> str:
    """Its address; it answers /start, /hook and /term."""
    world.label(pod_security="privileged")  # only there the node may be sent to other hosts
    ready = {"httpGet": {"path": "/start", "port": 8080}, "periodSeconds": 1}
    world.apply(pod("witness", container(WITNESS, readinessProbe=ready)))
    return str(world.ready("witness")["status"]["podIP"])


def calls(world: World) -> list[str]:
    """The paths that were asked for, oldest first, but for the witness's own probe."""
    lines = [line.rpartition("url:")[2].strip() for line in world.logs("witness").splitlines() if "url:" in line]
    return [path for path in lines if path != "/start"]


def called(world: World, *paths: str) -> None:
    def problem() -> str:
        found = calls(world)
        return "" if [path for path in found if path in paths] == list(paths) else f"calls: {found}"

    until(problem, POD_SECONDS)


def hooked(script: str, grace: int = GRACE, **lifecycle: Object) -> Object:
    return pod("p", container(script, lifecycle=lifecycle), terminationGracePeriodSeconds=grace)


def killed_by_hook(world: World) -> str:
    """The message of a container whose postStart hook failed."""
    found = world.until("p", "restarted", lambda found: found["status"]["containerStatuses"][0]["restartCount"] >= 1)
    status = found["status"]["containerStatuses"][0]
    assert "terminated" in status["lastState"]
    return str(status)


def gone(world: World, name: str = "p") -> None:
    def problem() -> str:
        return "" if world.attempt("get", "pod", name).returncode else f"{name} is still there"

    until(problem, POD_SECONDS)


def test_b25_post_start_exec_runs_in_the_container_before_it_is_ready(world: World) -> None:
    begun = "until grep -q sleep /proc/1/comm; do sleep 0.1; done"
    hook: Object = {
        "exec": {"command": ["sh", "-c", f"{begun}; sleep 1; echo $$ > /data/hook; cat /proc/1/comm >> /data/hook"]}
    }
    world.apply(hooked("exec sleep 1000", postStart=hook, grace=1))
    world.ready("p")
    assert world.exec("p", "cat", "/data/hook").split()[1:] == ["sleep"]


def test_b25_a_failing_post_start_exec_kills(world: World) -> None:
    world.apply(
        hooked("exec sleep 1000", postStart={"exec": {"command": ["sh", "-c", "echo no luck; exit 7"]}}, grace=1)
    )
    assert "no luck" in killed_by_hook(world)


def test_b25_a_post_start_that_hangs_keeps_the_pod_unready_and_does_not_hold_up_its_end(world: World) -> None:
    hook: Object = {"exec": {"command": ["sh", "-c", "echo $$ > /data/hook; exec sleep 1000"]}}
    world.apply(hooked("exec sleep 1000", postStart=hook, grace=1))
    until(lambda: world.attempt("exec", "p", "--", "cat", "/data/hook").stderr, POD_SECONDS)
    assert world.waiting("p", "ContainerCreating") == "", "as the kubelet says until the hook has ended"
    status = world.status("p")
    assert (status["ready"], status["restartCount"]) == (False, 0)
    world.shoal("delete", "pod", "p", "--wait=false")
    gone(world)


def test_b26_post_start_http_calls(world: World, witness: str) -> None:
    hook: Object = {"httpGet": {"host": witness, "port": 8080, "path": "/hook"}}
    world.apply(hooked("exec sleep 1000", postStart=hook, grace=1))
    world.ready("p")
    called(world, "/hook")


def test_b26_a_failing_post_start_http_kills(world: World) -> None:
    world.apply(hooked("exec sleep 1000", postStart={"httpGet": {"port": 9, "path": "/"}}, grace=1))
    assert "connection refused" in killed_by_hook(world)


def test_b27_pre_stop_exec_comes_before_term(world: World, witness: str) -> None:
    get = f"wget -q -O /dev/null http://{witness}:8080"
    script = f"trap '{get}/term; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    world.apply(hooked(script, preStop={"exec": {"command": ["sh", "-c", f"sleep 1; {get}/hook; sleep 1"]}}))
    world.said("p", "up")
    world.shoal("delete", "pod", "p", "--wait=false")
    called(world, "/hook", "/term")
    gone(world)


def test_b27_pre_stop_that_does_not_end_gets_the_grace_and_no_more(world: World) -> None:
    world.apply(hooked("exec sleep 1000", grace=2, preStop={"exec": {"command": ["sleep", "1000"]}}))
    world.ready("p")
    begin = time.monotonic()
    world.shoal("delete", "pod", "p", "--wait=false")
    gone(world)
    assert time.monotonic() - begin >= 2


def test_b28_pre_stop_http_comes_before_term(world: World, witness: str) -> None:
    get = f"wget -q -O /dev/null http://{witness}:8080"
    script = f"trap '{get}/term; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    world.apply(hooked(script, preStop={"httpGet": {"host": witness, "port": 8080, "path": "/hook"}}))
    world.said("p", "up")
    world.shoal("delete", "pod", "p", "--wait=false")
    called(world, "/hook", "/term")
    gone(world)
