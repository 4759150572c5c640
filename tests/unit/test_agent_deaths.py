"""Which runs of a container get a death certificate, what stands in it, and that each reaches the master once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from shoal.agent.outbox import KEPT_DEATHS, MAX_DEATHS, Outbox
from shoal.agent.pods import instructions as i
from shoal.agent.pods.deaths import LINE_CHARS, TAIL_BYTES, TAIL_LINES, last_lines, name_of
from shoal.agent.pods.facts import Run
from shoal.agent.pods.healthy import (
    Baseline,
    best,
    better,
    changes,
    from_bytes,
    to_bytes,
    workload_key,
)
from shoal.agent.pods.probing import Probed, Verdict
from shoal.agent.runtime.port import ContainerID, Exit, Resources
from shoal.proto import names
from shoal.proto.differences import different
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import World, kill, until
from tests.agents import IMAGE, NOW, UID, Driver, deleted, make_pod, running
from tests.sim import loop as sim

Scene = Callable[[Driver], None]


def stop(driver: Driver, grace: int = 30) -> None:
    driver.send(i.Assigned(deleted(driver.machine.pod, grace=grace)))
    driver.settle()


def unhealthy(driver: Driver) -> None:
    driver.tell("liveness", False)
    driver.settle()


def late(driver: Driver) -> None:
    stop(driver, grace=5)
    driver.pass_time(5.1)
    driver.settle()


def crash(code: int, number: int = 0, *, oom: bool = False) -> Scene:
    def play(driver: Driver) -> None:
        driver.exit(code, signal=number, oom=oom)
        driver.settle()

    return play


def both(*scenes: Scene) -> Scene:
    def play(driver: Driver) -> None:
        for scene in scenes:
            scene(driver)

    return play


@pytest.mark.parametrize(
    ("scene", "reason"),
    [
        (crash(3), "Error"),
        (crash(0), ""),
        (crash(137, 9, oom=True), "OOMKilled"),
        (crash(1, oom=True), "OOMKilled"),  # a child was killed, and PID 1 gave up
        (crash(0, oom=True), ""),
        (crash(143, 15), "Error"),  # nobody had asked for it
        (both(stop, crash(143, 15)), ""),
        (both(stop, crash(1)), ""),
        (both(stop, crash(139, 11)), "Error"),
        (both(stop, crash(137, 9, oom=True)), "OOMKilled"),
        (both(late, crash(137, 9)), "KilledAfterGrace"),
        (both(lambda driver: stop(driver, 0), crash(137, 9)), ""),  # --force
        (both(unhealthy, crash(0)), "Unhealthy"),
        (both(unhealthy, crash(137, 9)), "Unhealthy"),
    ],
)
def test_only_a_failure_that_nobody_asked_for_is_a_death(scene: Scene, reason: str) -> None:
    driver = running(make_pod(policy="Never"))
    scene(driver)
    assert [death.reason for death in driver.deaths] == ([reason] if reason else [])
    assert driver.status.phase in ("Failed", "Succeeded"), "and the pod's own end does not depend on it"


def test_a_deadline_gives_every_container_a_certificate() -> None:
    pod = make_pod(policy="Never", containers=("a", "b"), grace=1)
    pod.spec.activeDeadlineSeconds = 5
    driver = running(pod)
    driver.pass_time(5)
    driver.settle()
    driver.exit(0, "a")
    driver.exit(143, "b", signal=15)
    driver.settle()
    assert {death.container: death.reason for death in driver.deaths} == dict.fromkeys("ab", "DeadlineExceeded")
    assert "activeDeadlineSeconds" in driver.deaths[0].cause and "deadline" in driver.deaths[0].message


def test_what_could_not_be_started_dies_and_what_waits_for_its_configuration_does_not() -> None:
    driver = Driver(make_pod(policy="Never"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    driver.failed(i.Start, "StartError", "exec: no such file", exit_code=127, retryable=False)
    driver.settle()
    (death,) = driver.deaths
    assert (death.reason, death.exitCode, death.cause) == (
        "StartError",
        127,
        "it could not be started: exec: no such file",
    )
    assert not death.HasField("startedAt") and not death.HasField("resources")
    other = Driver(make_pod(policy="Never"))
    other.begin()
    other.settle(keep=lambda step: isinstance(step, i.Start))
    other.failed(i.Start, "CreateContainerConfigError", "no user", retryable=False)
    other.settle(keep=lambda step: isinstance(step, i.Start))
    assert not other.deaths


def test_the_certificate_says_what_the_run_was() -> None:
    driver = running()
    id = ContainerID(UID, "app", 0)
    used = Resources(64 << 20, 64 << 20, 1.5, 100, 80, 2.5, 3, 1)
    driver.now += 20
    driver.send(i.ContainerExited(id, Exit(137, 9, True, driver.now, message="last words", resources=used)))
    driver.settle()
    (death,) = driver.deaths
    assert death.metadata.name == "web.app.0.0a1b2c3d" and death.metadata.namespace == "default"
    assert (death.pod.uid, death.pod.name, death.node, death.container, death.attempt) == (UID, "web", "n1", "app", 0)
    assert (death.image, death.imageID, death.exitCode, death.signal) == ("app:1", IMAGE.id, 137, 9)
    assert (death.startedAt.seconds, death.finishedAt.seconds) == (int(NOW), int(NOW) + 20)
    assert death.message == "last words"
    assert (death.resources.peakMemoryBytes, death.resources.oomKills) == (64 << 20, 3)
    assert "64Mi of its limit of 64Mi" in death.cause and "80 % of the time" in death.cause
    assert not death.logTail and not death.changes
    assert death.lastHealthyAt.seconds == int(NOW) + 20  # it had run well for as long as unprobed runs must


def test_an_end_that_is_told_before_its_start_is_certified_with_both() -> None:
    driver = Driver(make_pod(policy="Never"))
    driver.begin()
    driver.settle(keep=lambda step: isinstance(step, i.Start))
    driver.now += 3
    driver.send(i.ContainerExited(ContainerID(UID, "app", 0), Exit(3, 0, False, driver.now)))
    assert not [step for step in driver.open if isinstance(step, i.Bury)]
    driver.settle()
    (death,) = driver.deaths
    assert death.HasField("startedAt") and death.cause.startswith("exit code 3: ")


def test_each_failed_run_has_its_own_also_over_a_restart_of_the_agent() -> None:
    driver = running()
    for code in (1, 2, 3):
        driver.exit(code)
        driver.settle()
        driver.pass_time(400)
        driver.settle()
    assert [(death.attempt, death.exitCode) for death in driver.deaths] == [(0, 1), (1, 2), (2, 3)]
    assert [run.note.buried for run in runs(driver)] == [True, False]
    assert driver.machine.record.notes["app/2"].buried


def runs(driver: Driver) -> list[Run]:
    facts = driver.machine.container("app")
    assert facts is not None
    return [run for run in (facts.previous, facts.run) if run is not None]


def test_probes_that_led_to_the_end_are_told_once_and_kept_on_disk() -> None:
    pod = make_pod()
    pod.spec.containers[0].livenessProbe.httpGet.path = "/healthz"
    driver = running(pod)
    tries = tuple(Probed("liveness", NOW + n, n == 0, "" if n == 0 else "HTTP 500", 3) for n in range(4))
    driver.send(i.Told(Verdict(ContainerID(UID, "app", 0), "liveness", False, "HTTP 500", tries)))
    driver.settle()
    assert len(driver.machine.record.notes["app/0"].tries) == 4
    driver.exit(143, signal=15)
    driver.settle()
    (death,) = driver.deaths
    assert [probe.passed for probe in death.probes] == [True, False, False, False]
    assert death.cause == (
        "its liveness probe failed 3 times in a row: HTTP 500, so its node ended it: SIGTERM ended it (exit code 143)"
    )


# ---- what has changed ----
def test_a_change_of_the_image_is_told_until_it_is_proven() -> None:
    """v1 ran well and was replaced; v2 dies again and again, and each certificate still says what is new."""
    first = running(make_pod())
    first.now += 100
    stop(first)
    first.exit(143, signal=15)
    first.settle()
    pod = make_pod(uid="0a1b2c3d-0000-4000-8000-000000000002")
    pod.spec.containers[0].image = "app:2"
    pod.spec.containers[0].env.add(name="PASSWORD", value="hunter2")
    pod.spec.containers[0].resources.limits["memory"].text = "32Mi"
    second = Driver(pod, images={"app:2": replace(IMAGE, id="sha256:9")})
    second.healthy = first.healthy
    second.begin()
    second.settle()
    for _ in range(3):
        second.now += 20
        second.exit(1)
        second.settle()
        second.pass_time(400)
        second.settle()
    assert [list(death.changes) for death in second.deaths] == [
        [
            "image: app:1 -> app:2",
            "manifest: env[PASSWORD] added",
            "manifest: resources.limits[memory] added",
        ]
    ] * 3
    assert "hunter2" not in str(second.deaths)
    assert {death.lastHealthyAt.seconds for death in second.deaths} == {int(NOW) + 100}
    assert "changed since it was last healthy: image: app:1 -> app:2 (and 2 more changes)" in second.deaths[0].cause


def test_changed_configuration_is_told_by_key_and_never_by_value() -> None:
    pod = make_pod()
    pod.spec.containers[0].envFrom.add().configMapRef.name = "settings"
    pod.spec.containers[0].env.add(name="P").valueFrom.secretKeyRef.name = "keys"
    pod.spec.containers[0].env[0].valueFrom.secretKeyRef.key = "k"
    driver = Driver(pod)
    put(driver, "one", b"hunter1")
    driver.begin()
    driver.settle()
    driver.now += 60
    put(driver, "two", b"hunter2")
    driver.exit(1)  # it had run with the old values: they are not why
    driver.settle()
    driver.exit(1)
    driver.settle()
    assert [list(death.changes) for death in driver.deaths] == [
        [],
        ["ConfigMap settings: key LEVEL changed", "Secret keys: key k changed"],
    ]
    assert "hunter" not in str(driver.deaths) and not any(b"hunter" in to_bytes("", b) for b in driver.healthy.values())


def put(driver: Driver, level: str, secret: bytes) -> None:
    config = o.ConfigMap(kind="ConfigMap", data={"LEVEL": level, "SAME": "x"})
    keys = o.Secret(kind="Secret", data={"k": secret})
    config.metadata.name, config.metadata.namespace = "settings", "default"
    keys.metadata.name, keys.metadata.namespace = "keys", "default"
    driver.objects.put(config)
    driver.objects.put(keys)


def baseline_now(at: float, since: float, *, weak: bool = False, image: str = "app:1") -> Baseline:
    driver = running(make_pod())
    facts = driver.machine
    driver.now += 1000
    found = facts.healthy(workload_key(facts.pod, "app"), driver.now)
    assert found is not None
    return replace(found, at=at, since=since, weak=weak, what=replace(found.what, image=image))


def test_what_is_remembered_and_what_is_compared_with() -> None:
    old, short = baseline_now(100, 50), baseline_now(200, 190, weak=True, image="app:2")
    assert better(None, short) is short and better(old, short) is old
    assert better(short, old) is old, "a good run wins over a crash loop, though it is older"
    assert better(old, baseline_now(300, 250)).at == 300
    proven, young = baseline_now(900, 100, image="app:3"), baseline_now(900, 890, image="app:4")
    assert best(old, [young, proven]) is proven
    assert best(old, [young]) is old
    assert best(short, [young]) is young
    assert best(None, []) is None
    key, again = from_bytes(to_bytes("a/b", old))
    assert (key, again) == ("a/b", old) and not changes(old.what, again.what)
    with pytest.raises(ValueError, match="not what a healthy run was"):
        from_bytes(b'{"key": 1}')


def test_a_rollouts_pods_are_one_workload() -> None:
    pod = make_pod("web-5d8f-x")
    pod.metadata.labels["pod-template-hash"] = "5d8f"
    pod.metadata.ownerReferences.add(kind="ReplicaSet", name="web-5d8f", controller=True)
    assert workload_key(pod, "app") == "default/Deployment/web/app"
    assert workload_key(make_pod("solo"), "app") == "default/Pod/solo/app"


def test_manifests_are_compared_by_path() -> None:
    old, new = o.Container(command=["a"]), o.Container(command=["b"], tty=True)
    old.resources.limits["memory"].text, new.resources.limits["memory"].text = "64Mi", "32Mi"
    old.env.add(name="A", value="secret1")
    new.env.add(name="A", value="secret2")
    new.livenessProbe.httpGet.path = "/x"
    assert list(different(old, new)) == [
        "command changed",
        "env[A].value changed",
        "livenessProbe.httpGet.path changed (- -> /x)",
        "resources.limits[memory] changed (64Mi -> 32Mi)",
        "tty changed",
    ]


# ---- its last lines, and its name ----
def test_the_log_is_cut_to_its_last_lines() -> None:
    lines = last_lines([f"line {n}" for n in range(100)])
    assert len(lines) == TAIL_LINES and lines[-1] == "line 99"
    assert [len(line) for line in last_lines(["x" * 9999])] == [LINE_CHARS]
    wide = last_lines(["\N{GRINNING FACE}" * 400] * 60)
    assert 0 < sum(len(line.encode()) for line in wide) <= TAIL_BYTES


def test_names_are_those_of_dns_however_long_the_pods_is() -> None:
    for name in ("web", "a" * 253, "a." * 120 + "bcd"):
        made = name_of(make_pod(name), "c" * 63, 12)
        assert names.not_dns_subdomain(made) is None and made.endswith(f".{'c' * 63}.12.{UID[:8]}")


# ---- on their way ----
def death(name: str, uid: str = "u") -> o.Death:
    made = o.Death(pod=o.ObjectReference(uid=uid))
    made.metadata.name = name
    return made


def test_deaths_go_until_acknowledged_and_never_hold_a_status_up() -> None:
    outbox = Outbox(1)
    let_go: list[str] = []
    outbox.buried = let_go.extend
    for number in range(MAX_DEATHS + 5):
        outbox.put_death(death(str(number)))
    assert not outbox.urgent
    outbox.put(s.PodReport(uid="p", status=o.PodStatus(phase="Running")))
    first = outbox.take()
    assert first is not None and len(first.deaths) == MAX_DEATHS and [pod.uid for pod in first.pods] == ["p"]
    outbox.new_session()
    again = outbox.take()
    assert again is not None and [d.metadata.name for d in again.deaths] == [d.metadata.name for d in first.deaths]
    outbox.acknowledge(again.sequence)
    assert len(let_go) == MAX_DEATHS and outbox.unacknowledged_deaths == 5
    rest = outbox.take()
    assert rest is not None and len(rest.deaths) == 5 and not outbox.dirty
    outbox.acknowledge(rest.sequence)
    assert outbox.unacknowledged_deaths == 0


def test_a_pods_last_word_does_not_overtake_its_deaths() -> None:
    outbox = Outbox(1)
    for number in range(MAX_DEATHS):
        outbox.put_death(death(str(number), "other"))
    for number in range(MAX_DEATHS + 1):
        outbox.put_death(death(f"p{number}", "p"))
    outbox.put(s.PodReport(uid="p", ended=True))
    outbox.put(s.PodReport(uid="q", ended=True))
    first = outbox.take()
    assert first is not None and {d.pod.uid for d in first.deaths} == {"p"}
    assert [pod.uid for pod in first.pods] == ["q"]
    second = outbox.take()
    assert second is not None and [pod.uid for pod in second.pods] == ["p"]
    assert "p20" in {d.metadata.name for d in second.deaths}


def test_too_many_deaths_lose_the_oldest_which_is_counted() -> None:
    outbox = Outbox(1)
    let_go: list[str] = []
    outbox.buried = let_go.extend
    for number in range(KEPT_DEATHS + 3):
        outbox.put_death(death(str(number)))
    assert let_go == ["0", "1", "2"] and outbox.dropped_deaths == 3
    assert outbox.unacknowledged_deaths == KEPT_DEATHS


async def serve(world: World, pods: list[o.Pod], acknowledge: Callable[[], bool]) -> None:
    """A master that takes what agents say."""
    seen = 0
    while True:
        await until(lambda s=seen: len(world.master.sessions) > s, "a session")  # type: ignore[misc]
        pipe = await world.master.welcomed(seen, *pods)
        seen += 1
        told = 0
        while not pipe.closed:
            await asyncio.sleep(0.01)
            for report in pipe.of("status")[told:] if acknowledge() else ():
                told += 1
                pipe.put(s.Down(status_ack=s.StatusAck(sequence=report.sequence)))


def heard(world: World) -> list[str]:
    return [d.metadata.name for pipe in world.master.sessions for report in pipe.of("status") for d in report.deaths]


@pytest.mark.parametrize("step", range(0, 40, 2))
def test_an_agent_that_dies_while_burying_tells_each_death_with_its_last_lines(step: int) -> None:
    async def main() -> None:
        world = World(start_seconds=0.01)
        master = asyncio.create_task(serve(world, [make_pod()], lambda: True))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            world.logs.append(f"/logs/{UID}/app/0.log", b"2026-01-01T00:00:00.000000000Z stderr F out of luck\n")
            world.runtime.crash(ContainerID(UID, "app", 0), 3)
            for _ in range(step):
                await asyncio.sleep(0)
        async with world.running() as agent:
            await until(lambda: bool(heard(world)), "the death")
            await until(lambda: agent.outbox.unacknowledged_deaths == 0)
            await asyncio.sleep(30)
            assert await world.state.notes("deaths") == {}
        assert set(heard(world)) == {f"web.app.0.{UID[:8]}"}
        last = [d for pipe in world.master.sessions for r in pipe.of("status") for d in r.deaths][-1]
        assert list(last.logTail) == ["out of luck"]
        await kill(master)

    sim.run(step, main())


def test_a_death_waits_on_disk_for_a_master_that_is_away() -> None:
    async def main() -> None:
        world, there = World(), [False]
        master = asyncio.create_task(serve(world, [make_pod()], lambda: there[0]))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            world.runtime.crash(ContainerID(UID, "app", 0), signal=signal.SIGSEGV)
            await until(lambda: bool(heard(world)))
        assert list(await world.state.notes("deaths")) == [f"web.app.0.{UID[:8]}"]
        world.runtime.gone = True  # the next agent has nothing but its disk
        there[0] = True
        world.runtime.come_back()
        async with world.running() as agent:
            await until(lambda: len(heard(world)) > 1 and agent.outbox.unacknowledged_deaths == 0)
            await asyncio.sleep(1)
            assert await world.state.notes("deaths") == {}
        await kill(master)

    sim.run(0, main())


def test_a_full_disk_loses_no_certificate_while_the_agent_lives() -> None:
    async def main() -> None:
        world = World()
        master = asyncio.create_task(serve(world, [make_pod()], lambda: True))
        async with world.running() as agent:
            await until(lambda: UID in agent.worker.machines and agent.worker.machines[UID].phase == "Running")
            world.state.full = True
            world.runtime.crash(ContainerID(UID, "app", 0))
            await until(lambda: bool(heard(world)))
            await until(lambda: agent.worker.machines[UID].phase == "Running")
        await kill(master)

    sim.run(0, main())
