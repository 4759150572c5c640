"""When a node is short of something, and who has to go: rules, settings, signals, and a whole agent under need."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.eviction import DEFAULT_EVICTION, ImageGC, parse_eviction, parse_image_gc
from shoal.agent.images.fake import FakeImages
from shoal.agent.images.port import ImageConfig, Pruned
from shoal.agent.machine import Amount, Capacity, Signals
from shoal.agent.machines import DevNode, RealMachine
from shoal.agent.node import Reserved, allocatable
from shoal.agent.pressure import (
    MEMORY,
    Candidate,
    Level,
    Met,
    State,
    Threshold,
    Use,
    evicted,
    image_bytes,
    observe,
    ranked,
    refusal,
)
from shoal.agent.reserve import decided, enforce, kept
from shoal.agent.runtime.cgroups import CgroupsV1, CgroupsV2, Room
from shoal.agent.runtime.port import ContainerID, Usage
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.agent_world import PLENTY, World, scenario, until
from tests.agents import UID, make_pod

MIB = 1 << 20
OTHER_UID = "0a1b2c3d-0000-4000-8000-000000000002"
HARD = Threshold(MEMORY, Level(100 * MIB))
SOFT = Threshold(MEMORY, Level(300 * MIB), grace=30.0)


def memory(mib: int) -> Signals:
    return replace(PLENTY, memory=Amount(mib * MIB, 4096 * MIB))


def seen(state: State, mib: int, now: float, *thresholds: Threshold) -> State:
    return observe(state, thresholds, memory(mib), now, 300.0)


# ---- thresholds and conditions ----
def test_a_hard_threshold_acts_at_once_and_a_soft_one_after_its_grace() -> None:
    state = seen(State(), 99, 10.0, HARD, SOFT)
    assert [met.threshold for met in state.due(10.0)] == [HARD]
    state = seen(State(), 200, 10.0, HARD, SOFT)
    assert not state.due(10.0) and not state.pressed
    state = seen(state, 200, 39.9, HARD, SOFT)
    assert not state.due(39.9)
    state = seen(state, 200, 40.0, HARD, SOFT)
    assert [met.threshold for met in state.due(40.0)] == [SOFT] and "MemoryPressure" in state.pressed


def test_a_soft_threshold_s_grace_begins_anew_once_there_was_enough() -> None:
    state = seen(State(), 200, 0.0, SOFT)
    state = seen(state, 301, 20.0, SOFT)
    state = seen(state, 200, 25.0, SOFT)
    assert not seen(state, 200, 50.0, SOFT).due(50.0)


def test_the_condition_stays_for_the_transition_period_and_tells_the_numbers() -> None:
    state = seen(State(), 63, 0.0, HARD)
    assert state.pressed["MemoryPressure"][1] == "memory.available is 63Mi of 4096Mi, less than 100Mi"
    state = seen(state, 2000, 1.0, HARD)
    assert not state.due(1.0)
    assert "MemoryPressure" in seen(state, 2000, 299.9, HARD).pressed
    assert "MemoryPressure" not in seen(state, 2000, 300.0, HARD).pressed


def test_what_has_been_short_gives_back_its_minimum_before_it_is_enough() -> None:
    wanted = Threshold(MEMORY, Level(100 * MIB), reclaim=Level(50 * MIB))
    assert not seen(State(), 101, 0.0, wanted).met
    state = seen(State(), 99, 0.0, wanted)
    state = seen(state, 149, 1.0, wanted)
    assert [met.wanted for met in state.due(1.0)] == [MIB]
    assert not seen(state, 150, 2.0, wanted).met


def test_an_amount_that_nobody_knows_is_never_short() -> None:
    unknown = replace(PLENTY, inodes=Amount(0, 0))
    assert not observe(State(), DEFAULT_EVICTION.thresholds, unknown, 0.0, 300.0).met


def test_memory_comes_first() -> None:
    poor = Signals(Amount(1, 1 << 30), Amount(1, 1 << 30), Amount(1, 1 << 20), Amount(1, 1 << 15))
    due = observe(State(), DEFAULT_EVICTION.thresholds, poor, 0.0, 300.0).due(0.0)
    assert due[0].threshold.kind.resource == "memory"
    assert {met.threshold.kind.condition for met in due} == {"MemoryPressure", "DiskPressure", "PIDPressure"}


# ---- ranking ----
def one(uid: str, used: int, request: int = 0, **fields: Any) -> Candidate:
    return Candidate(uid, f"default/{uid}", (Use("main", used, request),), **fields)


def test_who_exceeds_its_request_goes_first_then_the_least_important_then_the_greediest() -> None:
    pods = [
        one("guaranteed", 900, 1000),
        one("within", 100, 1000),
        one("little", 10),
        one("much", 50),
        one("burst", 1020, 1000),
        one("dear", 5000, priority=7),
        one("idle", 0),
    ]
    order = [pod.uid for pod in ranked(pods, "memory")]
    assert order == ["much", "burst", "little", "dear", "guaranteed", "within"]


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        st.just("n"),
        st.lists(st.builds(Use, st.just("c"), st.integers(0, 100), st.integers(0, 100)), max_size=3),
        st.integers(0, 50),
        st.integers(0, 2),
        st.floats(0, 10),
    ),
    max_size=8,
)


@given(CANDIDATES, st.randoms())
def test_the_order_depends_on_the_pods_alone(pods: list[Candidate], rng: Any) -> None:
    mixed = list(pods)
    rng.shuffle(mixed)
    assert ranked(mixed, "memory") == ranked(pods, "memory")


@given(CANDIDATES, st.sampled_from(["memory", "ephemeral-storage", "inodes"]))
def test_nobody_within_its_request_goes_before_one_that_exceeds_it(pods: list[Candidate], resource: str) -> None:
    order = ranked(pods, resource)
    exceeds = [pod.used > pod.request for pod in order]
    assert exceeds == sorted(exceeds, reverse=True)
    assert {pod.uid for pod in order} == {pod.uid for pod in pods if pod.used}


@given(st.lists(st.integers(0, 4096), min_size=1, max_size=40), st.integers(1, 60))
def test_a_condition_never_goes_while_it_is_short_nor_within_the_transition(left: list[int], transition: int) -> None:
    state, last = State(), float("-inf")
    for now, mib in enumerate(left):
        state = observe(state, [HARD], memory(mib), float(now), float(transition))
        last = float(now) if mib < 100 else last
        assert ("MemoryPressure" in state.pressed) == (now - last < transition)


def test_the_words_are_the_kubelet_s() -> None:
    met = Met(HARD, Amount(63 * MIB, 4096 * MIB), 0.0)
    assert evicted(met, one("a", 210 * MIB, 64 * MIB)) == (
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 63Mi. Container main was using "
        "210Mi, request is 64Mi, has larger consumption of memory."
    )


def test_memory_that_was_asked_for_is_there_and_a_full_disk_takes_nobody() -> None:
    assert refusal({"MemoryPressure": (0.0, "why")}, best_effort=False) == ""
    assert "condition: [MemoryPressure]: why" in refusal({"MemoryPressure": (0.0, "why")}, best_effort=True)
    assert "DiskPressure" in refusal({"DiskPressure": (0.0, "why")}, best_effort=False)
    assert refusal({}, best_effort=True) == ""


@pytest.mark.parametrize(("left", "wanted"), [(16, 0), (15, 5), (1, 19), (100, 0)])
def test_images_go_above_the_high_mark_down_to_the_low_one(left: int, wanted: int) -> None:
    assert image_bytes(Amount(left, 100), 85.0, 80.0) == wanted


# ---- settings ----
def test_defaults_are_the_kubelet_s() -> None:
    assert DEFAULT_EVICTION.hard(MEMORY, 1 << 40) == 100 * MIB
    assert DEFAULT_EVICTION.hard("nodefs.available", 1000) == 100
    assert DEFAULT_EVICTION.transition_period == 300.0


def test_settings_are_read() -> None:
    made = parse_eviction(
        {
            "hard": {"memory.available": "5%", "pid.available": 0},
            "soft": {"memory.available": "10%"},
            "soft_grace": {"memory.available": "1m30s"},
            "minimum_reclaim": {"memory.available": "10Mi"},
            "transition_period": 2,
        }
    )
    own = [one for one in made.thresholds if one.signal == MEMORY]
    assert own == [
        Threshold(MEMORY, Level(percent=5.0), None, Level(10 * MIB)),
        Threshold(MEMORY, Level(percent=10.0), 90.0, Level(10 * MIB)),
    ]
    assert not [one for one in made.thresholds if one.signal == "pid.available"]
    assert made.transition_period == 2.0
    assert parse_image_gc({"high": 50, "low": 40, "min_age": "1h"}) == ImageGC(50.0, 40.0, 3600.0)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"herd": {}}, "herd is not a setting; known are hard, soft"),
        ({"hard": {"memory": "1Mi"}}, "hard: memory is no signal; known are memory.available"),
        ({"hard": {"memory.available": "lots"}}, 'hard: memory.available: "lots" is not a quantity'),
        ({"hard": {"memory.available": "120%"}}, "leaves nothing"),
        ({"hard": {"memory.available": "-1Mi"}}, "hard: memory.available"),
        ({"hard": "100Mi"}, "hard must be a mapping"),
        ({"soft": {"memory.available": "1Gi"}}, "soft: memory.available needs a grace period in soft_grace"),
        ({"soft_grace": {"memory.available": "1m"}}, "soft_grace: memory.available has no threshold"),
        (
            {"soft": {"memory.available": "1Mi"}, "soft_grace": {"memory.available": 5}},
            "must be more than the hard threshold",
        ),
        ({"transition_period": "soon"}, "transition_period: 'soon' is not a time"),
    ],
)
def test_mistakes_in_settings_are_named(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_eviction(table)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"high": 101}, "high must be a percentage"),
        ({"high": 50, "low": 50}, "low (50) must be below high (50)"),
        ({"top": 1}, "top is not a setting"),
        ({"min_age": "x"}, "is not a time"),
    ],
)
def test_mistakes_in_image_gc_are_named(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_image_gc(table)
    assert text in str(caught.value)


# ---- the node's own share ----
CAPACITY = Capacity(2000, 4096 * MIB, 110, 1000 * MIB)


def test_small_nodes_keep_a_share_and_large_ones_a_fixed_amount() -> None:
    assert decided({}, CAPACITY, 32768) == Reserved(100, 256 * MIB, 0, 1024)
    assert decided({}, Capacity(400, 512 * MIB, 110, 0), 400) == Reserved(50, 64 * MIB, 0, 50)
    assert decided({"memory": 0, "cpu": 7}, CAPACITY, 0) == Reserved(7, 0, 0, 0)


def test_allocatable_leaves_out_what_a_threshold_would_take() -> None:
    left = allocatable(CAPACITY, kept(Reserved(100, 256 * MIB), DEFAULT_EVICTION, CAPACITY))
    assert left == {"cpu": 1900, "memory": (4096 - 256 - 100) * MIB, "ephemeral-storage": 900 * MIB}


def v1(root: Path, path: str, files: dict[str, str]) -> CgroupsV1:
    roots = {name: str(root / name) for name in ("cpu", "memory", "pids")}
    for name, text in files.items():
        file = root / name.partition(".")[0] / path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return CgroupsV1(roots, "shoal-t/n1")


def test_v1_limits_all_pods_together(tmp_path: Path) -> None:
    files = ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes", "pids.max")
    groups = v1(tmp_path, "shoal-t/n1/pods", dict.fromkeys(files, "0"))
    enforce(groups, Reserved(100, 256 * MIB, 0, 1024), CAPACITY, 32768)
    assert (tmp_path / "memory/shoal-t/n1/pods/memory.limit_in_bytes").read_text() == str((4096 - 256) * MIB)
    assert (tmp_path / "pids/shoal-t/n1/pods/pids.max").read_text() == str(32768 - 1024)
    assert (tmp_path / "cpu/shoal-t/n1/pods/cpu.shares").read_text() == str(1900 * 1024 // 1000)


def test_v1_tells_what_its_limits_leave(tmp_path: Path) -> None:
    files = {
        "memory.limit_in_bytes": "1000\n",
        "memory.usage_in_bytes": "700\n",
        "memory.stat": "total_inactive_file 100\ntotal_active_file 50\ntotal_rss 400\n",
        "pids.max": "300\n",
        "pids.current": "12\n",
    }
    groups = v1(tmp_path, "shoal-t/n1", files)
    assert groups.room("shoal-t/n1") == Room(1000, 550, 300, 12)
    assert groups.room("shoal-t/gone") == Room(0, 0, 0, 0)
    (tmp_path / "memory/shoal-t/n1/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "pids/shoal-t/n1/pids.max").write_text("max\n")
    assert groups.room("shoal-t/n1") == Room(0, 550, 0, 12)


def test_v2_tells_what_its_limits_leave(tmp_path: Path) -> None:
    files = {
        "memory.max": "max\n",
        "memory.current": "700\n",
        "memory.stat": "inactive_file 100\nactive_file 50\n",
        "pids.max": "300\n",
        "pids.current": "12\n",
    }
    folder = tmp_path / "shoal-t/n1"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    groups = CgroupsV2(str(tmp_path), "shoal-t/n1")
    assert groups.room("shoal-t/n1") == Room(0, 550, 300, 12)
    (folder / "memory.max").write_text("1000\n")
    assert groups.room("shoal-t/n1") == Room(1000, 550, 300, 12)


def test_signals_of_machines(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/pid_max").write_text("32768\n")
    (tmp_path / "sys/kernel/threads-max").write_text("1000\n")
    (tmp_path / "loadavg").write_text("0.00 0.01 0.05 2/250 4711\n")
    (tmp_path / "meminfo").write_text("MemTotal: 4096 kB\nMemAvailable: 1024 kB\n")
    host = RealMachine(tmp_path, proc=tmp_path, pods=lambda: Room(100, 30, 0, 5))
    got = host.signals()
    assert (got.memory, got.pids) == (Amount(1 << 20, 4 << 20), Amount(750, 1000))
    assert (got.pods_memory, got.pods_pids) == (Amount(70, 100), Amount(0, 0))
    assert 0 < got.disk.available < got.disk.capacity
    node = DevNode(host, "n1", CAPACITY, room=lambda: Room(1000, 1200, 400, 40)).signals()
    assert (node.memory, node.pids, node.disk.capacity) == (Amount(0, 1000), Amount(360, 400), got.disk.capacity)
    assert DevNode(host, "n1", CAPACITY, room=lambda: Room(0, 1, 0, 1)).signals().memory == got.memory


# ---- a whole agent ----
def using(world: World, uid: str, mib: int) -> None:
    world.runtime.used[ContainerID(uid, "app", 0)] = Usage(0.0, mib * MIB, 1)


def asking(pod: o.Pod, text: str) -> o.Pod:
    for table in (pod.spec.containers[0].resources.requests, pod.spec.containers[0].resources.limits):
        table["memory"].text, table["cpu"].text = text, "100m"
    return pod


def is_evicted(report: s.PodReport) -> bool:
    return (report.status.phase, report.status.reason) == ("Failed", "Evicted")


def runs(report: s.PodReport) -> bool:
    return report.status.phase == "Running"


def conditions(world: World) -> Sequence[o.Condition]:
    """As the master heard them last."""
    pipe = world.master.sessions[-1]
    reports = [*(hello.report for hello in pipe.of("hello")), *pipe.of("node")]
    return list(reports[-1].conditions)


def status(world: World, kind: str) -> str:
    return next((one.status for one in conditions(world) if one.type == kind), "")


@scenario
async def test_the_greedy_pod_goes_and_the_careful_one_stays_until_all_is_well(world: World) -> None:
    async with world.running():
        careful, greedy = asking(make_pod("careful"), "64Mi"), make_pod("greedy", uid=OTHER_UID)
        pipe = await world.master.welcomed(-1, careful, greedy)
        await world.reports(pipe, UID, runs)
        await world.reports(pipe, OTHER_UID, runs)
        assert status(world, "MemoryPressure") == "False"
        using(world, UID, 64)
        using(world, OTHER_UID, 50)
        world.machine.left = memory(63)
        report = await world.reports(pipe, OTHER_UID, is_evicted)
        assert "available: 63Mi. Container app was using 50Mi, request is 0," in report.status.message
        world.machine.left = PLENTY
        await until(lambda: status(world, "MemoryPressure") == "True", "the condition")
        begun = world.now()
        newcomer = make_pod("new", uid="0a1b2c3d-0000-4000-8000-000000000003")
        pipe.put(world.master.change(newcomer))
        refused = await world.reports(pipe, newcomer.metadata.uid, is_evicted)
        assert "condition: [MemoryPressure]: memory.available is 63Mi" in refused.status.message
        await until(lambda: status(world, "MemoryPressure") == "False", "the end of the condition")
        assert world.now() - begun > 290
        await world.reports(pipe, UID, runs)


@scenario
async def test_one_pod_at_a_time(world: World) -> None:
    async with world.running():
        pods = [make_pod(f"p{number}", uid=UID[:-1] + str(number)) for number in range(3)]
        pipe = await world.master.welcomed(-1, *pods)
        for number, pod in enumerate(pods):
            await world.reports(pipe, pod.metadata.uid, runs)
            using(world, pod.metadata.uid, 10 + number)
        world.machine.left = memory(63)
        await world.reports(pipe, pods[2].metadata.uid, is_evicted)
        world.machine.left = PLENTY
        await world.reports(pipe, pods[1].metadata.uid, runs)
        await world.reports(pipe, pods[0].metadata.uid, runs)


class Relief(FakeImages):
    """Whose disk has room again once an image went."""

    def __init__(self, world: World) -> None:
        super().__init__(clock=world.now)
        self.add("app:1", ImageConfig(("/run",)))
        self.add("old:1", ImageConfig(("/run",)))
        self.world = world

    async def collect(self, bytes_to_free: int, unused_for_s: float) -> Pruned:
        gone = await super().collect(bytes_to_free, unused_for_s)
        if gone.names:
            self.world.machine.left = PLENTY
        return gone


def writing(world: World) -> o.Pod:
    pod = make_pod()
    pod.spec.volumes.add(name="v").emptyDir.SetInParent()
    world.volumes.used[UID, "v"] = MIB
    return pod


FULL = replace(PLENTY, disk=Amount(1 << 29, 10 << 30))


@scenario
async def test_no_pod_goes_where_unused_images_suffice(world: World) -> None:
    world.images = Relief(world)
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, writing(world))
        await world.reports(pipe, UID, runs)
        world.machine.left = FULL
        await until(lambda: status(world, "DiskPressure") == "True", "the condition")
        await until(lambda: status(world, "DiskPressure") == "False", "the end of the condition")
        await world.reports(pipe, UID, runs)
        assert await world.images.find("old:1") is None
        assert await world.images.find("app:1") is not None
        assert not agent.pressure.evictions


@scenario
async def test_a_pod_goes_where_images_do_not_suffice_and_its_remains_are_cleared(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, writing(world))
        await world.reports(pipe, UID, runs)
        world.machine.left = FULL
        report = await world.reports(pipe, UID, is_evicted)
        assert "low on resource: ephemeral-storage" in report.status.message
        assert "Its volumes hold 1Mi." in report.status.message
        assert agent.pressure.evictions == {"nodefs.available": 1}
        await until(lambda: not world.volumes.pods, "the volumes' end")
        await until(lambda: not world.runtime.kept(UID), "the end of its files")


@scenario
async def test_a_full_disk_has_old_images_removed_before_anybody_is_in_need(world: World) -> None:
    world.images = Relief(world)
    world.machine.left = replace(PLENTY, disk=Amount(15 << 30, 100 << 30))
    async with world.running() as agent:
        await until(lambda: world.machine.left == PLENTY, "a collection")
        assert await world.images.find("old:1") is None
        assert not agent.pressure.evictions


@scenario
async def test_signals_that_cannot_be_read_evict_nobody(world: World) -> None:
    async with world.running() as agent:
        pipe = await world.master.welcomed(-1, make_pod())
        await world.reports(pipe, UID, runs)

        def broken() -> Signals:
            raise OSError("the kernel is silent")

        world.machine.signals = broken  # type: ignore[method-assign]
        await asyncio.sleep(60)
        await world.reports(pipe, UID, runs)
        assert not agent.pressure.evictions
