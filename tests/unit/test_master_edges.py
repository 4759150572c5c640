"""Small parts of the master on their own: admission of sessions, ranges, metrics, configuration, logs, failures."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from shoal.master import config as configuration
from shoal.master.api.auth import Identity, effective, may_be_node, may_use_cluster
from shoal.master.api.faults import Forbidden, Invalid, failure_of, invalid_object
from shoal.master.api.forward import fault_of
from shoal.master.config import ConfigError, is_address, parse
from shoal.master.dispatcher import assignments, nodes, statuses
from shoal.master.dispatcher.admission import Admission
from shoal.master.dispatcher.table import Table
from shoal.master.dispatcher.tunnels import PER_NODE, Tunnels
from shoal.master.http_server import targets
from shoal.master.metrics import Meters, StateCollector
from shoal.master.model import FINAL_PHASES, Change, Conflict, Create, Key, Unavailable
from shoal.master.recorder import EXPIRED_AT_ONCE, Recorder
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.store import keys
from shoal.master.store.memory import Memory, MemoryEtcd
from shoal.master.store.port import Put
from shoal.master.store.space import Compactor
from shoal.proto.logs import Json, Logfmt
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s
from tests.masterkit import MemoryStore, memory_master, until


# ---- admission of sessions ----
@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=300))
def test_never_more_are_admitted_than_the_rate_allows(gaps: list[float]) -> None:
    admission, now, admitted = Admission(rate=100, burst=5), 1000.0, 0
    for gap in gaps:
        now += gap
        wait = admission.ask(now)
        assert wait >= 0
        admitted += wait == 0
    assert admitted <= 5 + 100 * (now - 1000.0) + 1


def test_those_who_wait_are_spread_out() -> None:
    admission = Admission(rate=10, burst=1)
    waits = [admission.ask(1.0) for _ in range(6)]
    assert waits == sorted(waits)
    assert waits[0] == 0
    assert waits[-1] == pytest.approx(0.6, abs=0.11)
    assert admission.ask(2.0) == 0


# ---- ranges ----
def test_ranges_are_never_double_and_end_some_time() -> None:
    ranges = nodes.Ranges("10.0.0.0/22")
    ranges.learn("a", "10.0.1.0/24")
    assert [ranges.allot(name) for name in ("b", "c", "b")] == ["10.0.0.0/24", "10.0.2.0/24", "10.0.0.0/24"]
    assert ranges.allot("d") == "10.0.3.0/24"
    with pytest.raises(nodes.RangesUsedUp, match="no free /24"):
        ranges.allot("e")
    ranges.release("b")
    assert ranges.allot("e") == "10.0.0.0/24"
    with pytest.raises(ValueError, match="wider"):
        nodes.Ranges("10.0.0.0/28")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60))
def test_ranges_follow_what_nodes_say(steps: list[tuple[int, int]]) -> None:
    """Names come and go, and say ranges of their own, also foreign ones and twice the same: what is allotted is the
    lowest that nobody holds."""
    ranges, held = nodes.Ranges("10.0.0.0/21"), dict[str, str]()
    for number, what in steps:
        name = f"n{number}"
        if what < 8:
            held[name] = f"10.0.{what}.0/24"
            ranges.learn(name, held[name])
        elif what == 8:
            held.pop(name, None)
            ranges.release(name)
        else:
            lowest = next(cidr for i in range(8) if (cidr := f"10.0.{i}.0/24") not in held.values())
            held.setdefault(name, lowest)
            assert ranges.allot(name) == held[name]
    ranges.learn("stranger", "192.168.0.0/24")
    ranges.learn("none", "")
    for left in [f"10.0.{i}.0/24" for i in range(8) if f"10.0.{i}.0/24" not in held.values()]:
        assert ranges.allot(f"for {left}") == left
    with pytest.raises(nodes.RangesUsedUp):
        ranges.allot("more")


# ---- the node table ----
def node_with(name: str, cidr: str) -> o.Node:
    node = o.Node(apiVersion="v1", kind="Node")
    node.metadata.name, node.spec.podCIDR = name, cidr
    return node


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5)), max_size=300))
def test_whoever_is_told_blocks_or_all_of_it_knows_the_table(steps: list[tuple[int, int]]) -> None:
    """Sessions begin at any time, some fall behind by more blocks than are kept."""
    table = Table([node_with("n0", "10.0.0.0/24")])
    known: dict[str, tuple[int, dict[str, str]]] = {}

    def tell(who: str, everything: bool) -> None:
        at, rows = known.get(who, (0, {}))
        news = None if everything else table.news(at)
        if news is None:
            rows = {entry.name: entry.pod_cidr for part in table.parts() for entry in part.upsert_nodes}
            known[who] = (table.changes, rows)
            return
        rows |= {entry.name: entry.pod_cidr for entry in news.upsert_nodes}
        for name in news.remove_nodes:
            rows.pop(name, None)
        known[who] = (max(at, table.flushed), rows)

    for number, what in steps:
        if what == 0:
            table.drop(f"n{number}")
        elif what == 5:
            tell(f"s{number % 4}", everything=f"s{number % 4}" not in known)
        elif what == 4 and table.pending:
            table.flush()
        else:
            table.put(node_with(f"n{number}", f"10.{what}.0.0/24"))
    while table.pending:
        table.flush()
    now = {entry.name: entry.pod_cidr for part in table.parts() for entry in part.upsert_nodes}
    assert len(now) == len(table)
    for who, (at, _) in list(known.items()):
        if at < table.flushed:
            tell(who, everything=False)
        assert known[who] == (table.changes, now)


# ---- increments ----
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40), st.integers(0, 5))
def test_increments_hold_whole_revisions_in_order(steps: list[tuple[int, int]], big: int) -> None:
    store = MemoryStore()
    dirty, revision = assignments.Dirty(), 1
    last_change: dict[str, int] = {}
    for number, step in steps:
        revision += step
        uid = f"u{number}"
        if store.view.by_uid(uid) is None:
            pod = o.Pod(apiVersion="v1", kind="Pod")
            pod.metadata.name = pod.metadata.uid = uid
            pod.spec.nodeName = "n"
            pod.metadata.annotations["x"] = "y" * (900_000 if number <= big else 10)
            store._put(Key("Pod", "", uid), pod, None, [])
        dirty.add_pod(uid, revision)
        last_change[uid] = revision
    position, told = s.Position(epoch=1, revision=0), dict[str, int]()
    while dirty:
        message = assignments.increment(store.view, "n", dirty, revision, position)
        assert message is not None
        assert message.applies_to == position
        assert message.results_in.revision > position.revision
        position = message.results_in
        told |= {pod.uid: position.revision for pod in message.upsert_pods}
        assert all(left > position.revision for left in dirty.pods.values())
    assert position.revision == revision
    assert told.keys() == last_change.keys()
    assert all(told[uid] >= last_change[uid] for uid in told)


# ---- statuses ----
@given(st.sampled_from(sorted(statuses.PHASES)), st.sampled_from(sorted(statuses.PHASES)))
def test_a_phase_never_goes_back(old: str, new: str) -> None:
    allowed = not statuses.goes_back(o.PodStatus(phase=old), o.PodStatus(phase=new))
    if allowed:
        assert statuses.PHASES[new] >= statuses.PHASES[old]
        assert old not in FINAL_PHASES or new == old


# ---- tunnels ----
async def test_a_node_serves_a_bounded_number_of_tunnels() -> None:
    tunnels = Tunnels(random.Random(1), patience=0.2)
    waiting = [asyncio.ensure_future(tunnels.open("n", s.Open(), lambda _: None)) for _ in range(PER_NODE)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="already serves"):
        await tunnels.open("n", s.Open(), lambda _: None)
    tunnels.fail("n", Unavailable("gone"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    with pytest.raises(Unavailable, match="did not answer"):
        await tunnels.open("n", s.Open(), lambda _: None)


class TunnelCall:
    """An agent's end of a tunnel that says hello and waits."""

    def __init__(self, number: str) -> None:
        self.closed = asyncio.Event()
        self._hello = [s.TunnelFrame(hello=s.TunnelHello(id=number))]

    async def send(self, frame: s.TunnelFrame) -> None:
        raise AssertionError(f"nothing is to be sent: {frame}")

    async def receive(self) -> s.TunnelFrame | None:
        return self._hello.pop() if self._hello else None

    def close(self) -> None:
        self.closed.set()


async def test_a_tunnel_that_comes_as_its_caller_gives_up_is_ended() -> None:
    tunnels, asked = Tunnels(random.Random(1), patience=5), list[s.Open]()
    caller = asyncio.ensure_future(tunnels.open("n", s.Open(), asked.append))
    await asyncio.sleep(0)
    call = TunnelCall(asked[0].id)
    serving = asyncio.ensure_future(tunnels.accept(call, "n"))
    await asyncio.sleep(0)  # the answer is there, the caller has not looked yet
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    async with asyncio.timeout(5):
        await serving
    assert call.closed.is_set()
    assert not tunnels._count


# ---- events ----
async def test_any_number_of_events_expires_in_bounded_writes() -> None:
    store = MemoryStore()
    changes: list[Change] = []
    for number in range(2500):
        event = o.Event(apiVersion="v1", kind="Event")
        event.metadata.name, event.metadata.namespace, event.metadata.uid = f"e{number}", "default", f"uid-{number}"
        event.lastTimestamp.seconds = 1000
        changes.append(Create(event))
    await store.write(changes)
    store.writes.clear()
    recorder = Recorder(store, lambda: 10_000.0, random.Random(1))
    running = asyncio.ensure_future(recorder.run())
    await until(lambda: not list(store.view.all("Event")))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert max(map(len, store.writes)) <= EXPIRED_AT_ONCE


# ---- a master that stood still ----
async def test_after_standing_still_nobody_is_judged_by_silence() -> None:
    async with memory_master() as master:
        term = master._term
        assert term is not None
        term._judging_since -= 100.0  # the agents' time to come back to a new leader is long over
        before = term._beats().judging_since
        term._awake -= 100.0
        assert term._beats().judging_since > before


# ---- compaction ----
async def test_compaction_goes_on_after_an_answer_that_makes_no_sense() -> None:
    server = MemoryEtcd()
    port = Memory(server)
    await port.txn((), (Put(keys.COMMIT, b"\xff\xff"),))
    compactor = Compactor(port, lambda: 1e9)
    await compactor._quietly(compactor.compact())
    assert compactor.compacted == 0


# ---- who may what ----
def test_roles() -> None:
    admin, node, master = (Identity(f"shoal:{role}", "x") for role in ("admins", "nodes", "masters"))
    may_use_cluster(admin)
    assert may_be_node(node) == "x"
    for nobody in (node, master, Identity("", ""), Identity("shoal:admins2", "x")):
        with pytest.raises(Forbidden):
            may_use_cluster(nobody)
    for nobody in (admin, master, Identity("shoal:nodes", "")):
        with pytest.raises(Forbidden):
            may_be_node(nobody)
    assert effective(master, "shoal:admins/alice") == Identity("shoal:admins", "alice")
    assert effective(node, "") == node
    with pytest.raises(Forbidden):
        effective(admin, "shoal:admins/bob")


# ---- failures ----
def test_failures_carry_every_field() -> None:
    failure = failure_of(invalid_object("Pod a", [("spec.x", "is wrong"), ("", "is odd")]))
    assert (failure.reason, [f.path for f in failure.fields]) == ("Invalid", ["spec.x", ""])
    assert failure_of(Unavailable("lost", "unknown")).reason == "UnknownOutcome"
    assert failure_of(Unavailable("away")).retryable


@pytest.mark.parametrize("fault", [Invalid("bad", [("a", "b")]), Conflict("changed"), Unavailable("?", "unknown")])
def test_a_forwarded_failure_stays_the_same(fault: Exception) -> None:
    assert isinstance(fault, Invalid | Conflict | Unavailable)
    body = failure_of(fault).SerializeToString()
    trailing = grpc.aio.Metadata(("shoal-failure-bin", body))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailing, "x")
    assert failure_of(fault_of(error)) == c.Failure.FromString(body)


def test_a_leader_that_does_not_answer_leaves_the_outcome_open() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
    fault = fault_of(error)
    assert (fault.reason, fault.retryable) == ("UnknownOutcome", True)


# ---- metrics and discovery ----
async def test_state_is_shown_in_the_known_names() -> None:
    store = MemoryStore()
    node = node_with("n", "10.0.0.0/24")
    node.status.conditions.add(type="Ready", status="Unknown")
    node.status.capacity["memory"].text = "1Gi"
    node.status.capacity["cpu"].text = "nonsense"
    deployment = o.Deployment(apiVersion="apps/v1", kind="Deployment")
    deployment.metadata.name, deployment.metadata.namespace = "web", "default"
    deployment.spec.replicas, deployment.status.availableReplicas = 3, 2
    pod = o.Pod(apiVersion="v1", kind="Pod")
    pod.metadata.name, pod.metadata.namespace = 'we"b', "default"
    pod.status.phase = "Running"
    pod.status.containerStatuses.add(name="c", restartCount=4)
    await store.write([Create(node), Create(deployment), Create(pod)])
    registry = CollectorRegistry()
    registry.register(StateCollector(lambda: store.view))
    meters = Meters(registry)
    meters.observe_schedule("scheduled", 3, 0.01)
    meters.observe_bound(0.5)
    meters.pending_pods(1, 2, 3, 4)
    meters.incoming("NodeAdd", 5)
    meters.preempted(2)
    meters.reconciled("gc", "ok", 0.001)
    text = generate_latest(registry).decode()
    for line in (
        'kube_node_status_condition{condition="Ready",node="n",status="unknown"} 1.0',
        'kube_node_status_capacity{node="n",resource="memory",unit="byte"} 1.073741824e+09',
        'kube_deployment_status_replicas_available{deployment="web",namespace="default"} 2.0',
        'kube_deployment_spec_replicas{deployment="web",namespace="default"} 3.0',
        'kube_pod_container_status_restarts_total{container="c",namespace="default",pod="we\\"b",uid=""} 4.0',
        'kube_pod_status_phase{namespace="default",phase="Running",pod="we\\"b",uid=""} 1.0',
        'scheduler_schedule_attempts_total{result="scheduled"} 3.0',
        'scheduler_pending_pods{queue="unschedulable"} 3.0',
        'scheduler_pending_pods{queue="gated"} 4.0',
        'scheduler_queue_incoming_pods_total{event="NodeAdd",queue="active"} 5.0',
        "scheduler_preemption_attempts_total 1.0",
        "scheduler_preemption_victims_sum 2.0",
        "scheduler_pod_scheduling_sli_duration_seconds_count 1.0",
        'controller_runtime_reconcile_total{controller="gc",result="ok"} 1.0',
    ):
        assert line in text, line


def test_only_nodes_with_metrics_are_discovered() -> None:
    with_port, without = node_with("b", ""), node_with("a", "")
    with_port.status.addresses.add(type="Hostname", address="b")
    with_port.status.addresses.add(type="InternalIP", address="10.0.0.2")
    with_port.status.metricsPort = 9100
    assert targets([with_port, without]) == [{"targets": ["10.0.0.2:9100"], "labels": {"node": "b"}}]


# ---- configuration ----
GOOD = {
    "name": "m",
    "listen": ["127.0.0.1:1"],
    "advertise": "h:2",
    "ca": "a",
    "certificate": "b",
    "key": "c",
    "etcd_endpoints": ["e:3"],
}


def test_a_good_configuration(tmp_path: Path) -> None:
    made = parse(GOOD, "x")
    assert (made.listen, made.ca, made.heartbeat_ms) == (("127.0.0.1:1",), Path("a"), 5000)
    path = tmp_path / "m.yaml"
    tree = {k: v for k, v in GOOD.items() if k != "etcd_endpoints"} | {"etcd": {"endpoints": ["e:3"]}}
    path.write_text(json.dumps(tree))
    assert configuration.load(["--config", str(path), "--name", "other"]).name == "other"


def test_profiles_begin_with_another_and_change_its_weights() -> None:
    told = {"default-scheduler": {"base": "bin-packing"}, "packed": {"base": "bin-packing", "most": 2}, "own": {}}
    made = parse(GOOD | {"profiles": told}, "x").profiles
    assert made["default-scheduler"] == BUILT_IN["bin-packing"] == made["bin-packing"]
    assert made["packed"] == replace(BUILT_IN["bin-packing"], most=2.0)
    assert made["own"] == BUILT_IN["default-scheduler"]
    assert parse(GOOD | {"profiles": {"balanced": {"spread": 0}}}, "x").profiles["balanced"].balanced == 0.75
    assert parse(GOOD, "x").profiles == BUILT_IN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profiles": ["balanced"]}, "profiles: must hold a profile's weights under its name"),
        ({"profiles": {"p": None}}, "profiles: p: must hold weights, such as least: 0.5"),
        ({"profiles": {"P q": {}}}, 'profiles: "P q" is not a valid name'),
        ({"profiles": {1: {}}}, "profiles: 1 is not a name"),
        ({"profiles": {"p": {"base": "q"}}}, "profiles: p.base: 'q' is none of default-scheduler, bin-packing, bal"),
        ({"profiles": {"p": {"lest": 1}}}, "profiles: p: lest is no part of a score; did you mean least?"),
        ({"profiles": {"p": {"least": -1}}}, "profiles: p.least: must be a number from 0 to 1e[+]09, but it is -1"),
        ({"profiles": {"p": {"least": True}}}, "profiles: p.least: must be a number"),
        ({"profiles": {"p": {"least": float("nan")}}}, "profiles: p.least: must be a number"),
        ({"listen": ["nowhere"]}, "is not HOST:PORT"),
        ({"listen": "127.0.0.1:1"}, "must be a list"),
        ({"nmae": "x"}, "did you mean name"),
        ({"heartbeat_ms": 1}, "at least 50"),
        ({"heartbeat_ms": True}, "at least 50"),
        ({"deaths_kept_hours": 0}, "deaths_kept_hours: must be a whole number of at least 1"),
        ({"etcd_ca": "x"}, "TLS needs ca, certificate and key"),
        ({"cluster_cidr": "10.0.0.0/33"}, "cluster_cidr"),
        ({"cluster_cidr": "10.0.0.0/28"}, "cluster_cidr"),
        ({"log_format": "xml"}, "logfmt, json"),
        ({"advertise": "h"}, "advertise"),
        ({"name": ""}, "is missing"),
        ({"key": 5}, "must be a text"),
    ],
)
def test_a_bad_configuration_says_what(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(GOOD | change, "x")


@given(st.text(max_size=30))
def test_addresses_never_crash(text: str) -> None:
    assert is_address(text) in (True, False)
    assert is_address("[::1]:80")
    assert not is_address("::1:80")


# ---- logs ----
@pytest.mark.parametrize("formatter", [Logfmt(), Json()])
def test_a_log_line_is_one_line(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("shoal.x", logging.INFO, "f", 1, 'said "%s"\nand more', ("hi",), None)
    line = formatter.format(record)
    assert "\n" not in line
    assert '\\"hi\\"\\nand more' in line
