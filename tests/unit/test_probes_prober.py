"""The prober on virtual time: when it asks, what it tells, and that nothing outlives its container."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import pairwise

from shoal.agent.pods.probing import LIVENESS, READINESS, STARTUP, Target, Verdict
from shoal.agent.probes.hooks import LiveHooks
from shoal.agent.probes.prober import LiveProber
from shoal.agent.runtime.port import ContainerID, ProbeRun, RuntimeFault, RuntimeGone, StartError
from shoal.proto.v1 import objects_pb2 as o
from tests.virtual_loop import virtual

WALL = 1_000_000.0


class Scripted:
    """A runtime whose commands are told what to do by their first word: a kind of probe."""

    def __init__(self) -> None:
        self.codes: dict[str, int | None] = {}  # None: it does not end
        self.faults: dict[str, Exception] = {}
        self.seconds = 0.0
        self.asked: list[tuple[str, float]] = []  # (word, loop time)
        self.running = 0

    async def run_probe(self, id: ContainerID, argv: Sequence[str], timeout_s: float) -> ProbeRun:
        self.asked.append((argv[0], asyncio.get_running_loop().time()))
        self.running += 1
        try:
            if argv[0] in self.faults:
                raise self.faults[argv[0]]
            code = self.codes.get(argv[0], 0)
            await asyncio.sleep(timeout_s if code is None else min(self.seconds, timeout_s))
            return ProbeRun(code, b"words")
        finally:
            self.running -= 1

    def times(self, word: str) -> list[float]:
        return [at for asked, at in self.asked if asked == word]


class Node:
    def __init__(self) -> None:
        self.runtime, self.verdicts = Scripted(), list[Verdict]()
        loop = asyncio.get_running_loop()
        self.prober = LiveProber(self.runtime, lambda: WALL + loop.time(), random.Random(7))
        self.prober.on_verdict = self.verdicts.append

    def told(self) -> list[tuple[str, bool]]:
        return [(verdict.kind, verdict.passed) for verdict in self.verdicts]


def probe(kind: str, **fields: int) -> o.Probe:
    made = o.Probe(**{"periodSeconds": 1, "failureThreshold": 2, **fields})  # type: ignore[arg-type]
    made.exec.command.append(kind)
    return made


def target(*kinds: str, attempt: int = 0, name: str = "main", **fields: int) -> Target:
    return Target(ContainerID("pod", name, attempt), "10.0.0.1", WALL, {kind: probe(kind, **fields) for kind in kinds})


def test_nothing_is_asked_before_the_initial_delay() -> None:
    async def main() -> None:
        node = Node()
        node.prober.watch(target(READINESS, LIVENESS, initialDelaySeconds=30))
        await asyncio.sleep(29.99)
        assert node.runtime.asked == []
        await asyncio.sleep(1.5)
        assert node.told() == [(READINESS, True)]

    virtual(main())


def test_ticks_come_once_a_period_in_one_phase() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.seconds = 0.3
        node.prober.watch(target(LIVENESS, periodSeconds=5))
        await asyncio.sleep(61)
        times = node.runtime.times(LIVENESS)
        assert {round(after - before, 6) for before, after in pairwise(times)} == {5.0}
        assert len(times) == 12 + (times[0] <= 1)
        assert node.verdicts == []

    virtual(main())


def test_a_slow_command_is_never_asked_twice_at_once() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[LIVENESS] = None
        node.prober.watch(target(LIVENESS, timeoutSeconds=7, failureThreshold=3))
        highest = 0
        for _ in range(300):
            await asyncio.sleep(0.1)
            highest = max(highest, node.runtime.running)
        assert highest == 1
        assert node.told() == [(LIVENESS, False)]
        assert "did not end within 7 s" in node.verdicts[0].message

    virtual(main())


def test_containers_that_start_at_once_are_asked_apart() -> None:
    async def main() -> None:
        node = Node()
        for number in range(50):
            node.prober.watch(target(LIVENESS, name=f"c{number}"))
        await asyncio.sleep(1.0)
        times = node.runtime.times(LIVENESS)
        assert len(times) == 50
        assert max(sum(1 for at in times if begin <= at < begin + 0.1) for begin in times) < 20

    virtual(main())


def test_startup_holds_the_others_back() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[STARTUP] = 1
        node.prober.watch(target(STARTUP, LIVENESS, READINESS, failureThreshold=100))
        await asyncio.sleep(20)
        assert set(node.runtime.asked) == {(STARTUP, at) for at in node.runtime.times(STARTUP)}
        node.runtime.codes[STARTUP] = 0
        await asyncio.sleep(3)
        assert node.told() == [(STARTUP, True), (READINESS, True)]
        asked = len(node.runtime.times(STARTUP))
        await asyncio.sleep(20)
        assert len(node.runtime.times(STARTUP)) == asked
        assert len(node.runtime.times(LIVENESS)) > 15

    virtual(main())


def test_a_new_run_begins_anew_and_forgotten_ones_are_silent() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[LIVENESS] = 1
        node.prober.watch(target(LIVENESS))
        await asyncio.sleep(10)
        assert node.told() == [(LIVENESS, False)]
        node.prober.watch(target(LIVENESS, attempt=1))
        await asyncio.sleep(10)
        assert [verdict.id.attempt for verdict in node.verdicts] == [0, 1]
        node.prober.watch(target(LIVENESS, attempt=2))
        node.prober.forget("pod")
        asked = len(node.runtime.asked)
        await asyncio.sleep(10)
        assert len(node.runtime.asked) == asked

    virtual(main())


def test_forgetting_drops_the_try_in_flight() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[LIVENESS] = None
        node.prober.watch(target(LIVENESS, timeoutSeconds=60, failureThreshold=1))
        await asyncio.sleep(5)
        assert node.runtime.running == 1
        node.prober.forget("pod", "main")
        await asyncio.sleep(100)
        assert node.runtime.running == 0
        assert node.verdicts == []

    virtual(main())


def test_the_listener_may_forget_in_its_call() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[STARTUP] = 1

        def forget(verdict: Verdict) -> None:
            node.verdicts.append(verdict)
            node.prober.forget("pod")

        node.prober.on_verdict = forget
        node.prober.watch(target(STARTUP, READINESS))
        await asyncio.sleep(60)
        assert node.told() == [(STARTUP, False)]
        assert len(node.runtime.asked) == 2

    virtual(main())


def test_changed_facts_of_a_run_keep_its_count_and_phase() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[LIVENESS] = 1
        first = target(LIVENESS, failureThreshold=10)
        node.prober.watch(first)
        for _ in range(20):
            await asyncio.sleep(0.5)
            node.prober.watch(Target(first.id, "10.0.0.2", WALL, first.probes, ready=True))
        await asyncio.sleep(1)
        assert node.told() == [(LIVENESS, False)]

    virtual(main())


def test_a_runtime_that_is_away_fails_nobody_and_a_missing_command_does() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.faults[LIVENESS] = RuntimeGone("away")
        node.runtime.faults[READINESS] = StartError("ContainerCannotRun", "no such file", 127)
        node.prober.watch(target(LIVENESS, READINESS))
        await asyncio.sleep(30)
        assert node.told() == [(READINESS, False)]
        assert "no such file" in node.verdicts[0].message

    virtual(main())


def test_a_probe_with_nothing_to_ask_fails_and_says_so() -> None:
    async def main() -> None:
        node = Node()
        made = o.Probe(periodSeconds=1, failureThreshold=1)
        made.httpGet.port.text = "web"
        node.prober.watch(Target(ContainerID("pod", "main", 0), "10.0.0.1", WALL, {LIVENESS: made}, {"api": 80}))
        await asyncio.sleep(3)
        assert node.told() == [(LIVENESS, False)]
        assert node.verdicts[0].message == "the container has no port 'web': name one of its ports (api), or a number"

    virtual(main())


def test_close_ends_everything() -> None:
    async def main() -> None:
        node = Node()
        node.runtime.codes[LIVENESS] = None
        node.prober.watch(target(LIVENESS, timeoutSeconds=60))
        await asyncio.sleep(5)
        await node.prober.close()
        assert node.runtime.running == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtual(main())


def test_hooks_say_why_not_and_keep_to_their_time() -> None:
    async def main() -> None:
        node, loop = Node(), asyncio.get_running_loop()
        hooks = LiveHooks(node.runtime)

        async def run(handler: o.LifecycleHandler, seconds: float) -> tuple[str, float]:
            begin = loop.time()
            return await hooks.run(ContainerID("pod", "main", 0), handler, "10.0.0.1", {}, seconds), loop.time() - begin

        command = o.LifecycleHandler(exec=o.ExecAction(command=["hook"]))
        assert await run(command, 5.0) == ("", 0.0)
        node.runtime.codes["hook"] = 3
        assert (await run(command, 5.0))[0] == "exit code 3: words"
        node.runtime.codes["hook"] = None
        why, seconds = await run(command, 5.0)
        assert "did not end within 5 s" in why
        assert seconds == 5.0
        assert await run(o.LifecycleHandler(sleep=o.SleepAction(seconds=4)), 5.0) == ("", 4.0)
        assert (await run(o.LifecycleHandler(sleep=o.SleepAction(seconds=40)), 5.0))[1] == 5.0
        assert (await run(command, -1.0))[0] != ""
        assert (await run(o.LifecycleHandler(), 5.0))[0].startswith("there is nothing to ask")

    virtual(main())


def test_a_hook_whose_runtime_dies_is_run_again_within_its_time() -> None:
    """It says nothing of the hook; a container that has gone, however, is the end of it."""

    async def main() -> None:
        node, loop = Node(), asyncio.get_running_loop()
        hooks, command = LiveHooks(node.runtime), o.LifecycleHandler(exec=o.ExecAction(command=["hook"]))

        async def run() -> tuple[str, float]:
            begin = loop.time()
            said = await hooks.run(ContainerID("pod", "main", 0), command, "10.0.0.1", {}, 5.0)
            return said, loop.time() - begin

        node.runtime.faults["hook"] = RuntimeGone("being replaced")
        loop.call_later(1.1, node.runtime.faults.clear)
        said, seconds = await run()
        assert said == "" and 1.1 <= seconds < 2.0
        node.runtime.faults["hook"] = RuntimeGone("being replaced")
        said, seconds = await run()
        assert said == "being replaced" and 4.0 < seconds <= 5.0
        node.runtime.faults["hook"] = RuntimeFault("container main does not run")
        assert await run() == ("container main does not run", 0.0)

    virtual(main())
