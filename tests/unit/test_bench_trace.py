"""The trace's replays: on a small cluster whose outcome can be worked out, and on files that are broken."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from bench import openb
from bench.openb import Ask, Machine, TraceError
from bench.openb_core import replay_core
from bench.openb_replay import BestFit, Cluster, Fgd, Meter, Random, arrivals, replay, shuffled

from shoal.master.scheduler.gpus import Want

NODE_HEAD = "sn,cpu_milli,memory_mib,gpu,model\n"
POD_HEAD = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
HALF, FULL, NONE = Want(500, 1), Want(1000, 1), Want(0, 0)


def machine(name: str, gpus: int = 2, cpu: int = 8000, model: str = "T4") -> Machine:
    return Machine(name, cpu, 16384, gpus, model)


def ask(want: Want, cpu: int = 1000, models: tuple[str, ...] = ()) -> Ask:
    return Ask(cpu, 1024, want, models)


def put(folder: Path, nodes: str = "n1,8000,16384,2,T4\n", pods: str = "p1,1000,1024,1,500,\n") -> Path:
    (folder / openb.NODES).write_text(NODE_HEAD + nodes)
    (folder / "openb_pod_list_default.csv").write_text(POD_HEAD + pods)
    return folder


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    put(tmp_path, pods="p1,1000,1024,1,500,T4|A10\np2,100,64,0,0,\np3,1,1,4,1000,T4|\n")
    assert openb.machines(tmp_path) == [Machine("n1", 8000, 16384, 2, "T4")]
    assert openb.asks(tmp_path / "openb_pod_list_default.csv") == [
        Ask(1000, 1024, HALF, ("A10", "T4")),
        Ask(100, 64, NONE, ()),
        Ask(1, 1, Want(1000, 4), ("T4",)),
    ]


def test_default_comes_last_and_the_table_is_averaged_over_its_seeds(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "openb_pod_list_zeta.csv").write_text("")
    assert [openb.name_of(file) for file in openb.workloads(tmp_path)] == ["zeta", "default"]
    assert openb.published(tmp_path) == {}
    rows = "openb_pod_list_default,06-FGD,42,1,2,3,4,5,6,7,8\nopenb_pod_list_default,06-FGD,43,1,2,3,4,5,6,7,9\n"
    (tmp_path / openb.TABLE).write_text("workload,sc_policy,seed,50,80,90,95,100,110,120,130\n" + rows)
    assert openb.published(tmp_path)["default", "fgd"][130] == 8.5


@pytest.mark.parametrize(
    ("pods", "line", "words"),
    [
        ("p1,x,1024,1,500,\n", 2, "cpu_milli is 'x': a whole number of at least 0 is needed"),
        ("p1,1,1024,1,500,\np2,1,1024,1,1500,\n", 3, "gpu_milli is '1500': a pod with GPUs asks for 1 to 1000"),
        ("p1,1,1024,2,500,\n", 2, "a pod with several GPUs asks for 1000"),
        ("p1,1,1024\n", 2, "num_gpu is None: the line is too short"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, pods: str, line: int, words: str) -> None:
    put(tmp_path, pods=pods)
    file = tmp_path / "openb_pod_list_default.csv"
    with pytest.raises(TraceError) as caught:
        openb.asks(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert words in str(caught.value)


def test_a_missing_column_file_or_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path) / "openb_pod_list_default.csv"
    file.write_text("name,cpu_milli\n")
    with pytest.raises(TraceError, match=r"csv:1: the column memory_mib, num_gpu, gpu_milli, gpu_spec is missing"):
        openb.asks(file)
    (tmp_path / openb.NODES).unlink()
    with pytest.raises(TraceError, match=f"{openb.NODES} cannot be read: .*put a readable CSV file there"):
        openb.machines(tmp_path)
    file.unlink()
    with pytest.raises(TraceError, match="SHOAL_TRACE_DIR"):
        openb.workloads(tmp_path)
    monkeypatch.setenv("SHOAL_TRACE_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(TraceError, match=r"nowhere is not a folder: .*SHOAL_TRACE_DIR"):
        openb.folder()


def test_arrivals_reach_130_percent_and_no_more() -> None:
    pods = [ask(HALF), ask(FULL), ask(NONE)]
    for few, capacity in ((pods, 20_000), (pods * 40, 20_000)):
        queue = arrivals(few, capacity, random.Random(1))
        demand = sum(one.milli for one in queue)
        assert 1.30 * capacity - 1000 < demand <= 1.30 * capacity
    assert arrivals(pods, 20_000, random.Random(1)) == arrivals(pods, 20_000, random.Random(1))
    assert arrivals(pods, 20_000, random.Random(1)) != arrivals(pods, 20_000, random.Random(2))


def test_best_fit_takes_the_fullest_node_and_the_first_name_among_equals() -> None:
    cluster = Cluster.of([machine("a"), machine("b", gpus=1), machine("c", gpus=1)])
    replay(cluster, [ask(HALF), ask(HALF), ask(HALF), ask(FULL)], BestFit())
    assert cluster.left.tolist() == [[0, 1000], [0, 0], [500, 0]]


def test_fgd_keeps_whole_devices_whole() -> None:
    """Half of the pods ask for a whole device: a half goes where a half is left, not where CPU is scarcest."""
    pods = [ask(HALF), ask(FULL)]
    cluster = Cluster.of([machine("a", gpus=2), machine("b", gpus=1)])
    cluster.take(ask(HALF), 0, [1])
    replay(cluster, [ask(HALF)], Fgd(cluster, pods))
    assert cluster.left.tolist() == [[1000, 0], [1000, 0]]


def test_models_memory_and_devices_limit_where_a_pod_goes() -> None:
    cluster = Cluster.of([machine("a"), machine("b", model="A10")])
    everywhere = np.arange(2)
    assert cluster.fits(ask(HALF, models=("A10",)), everywhere).tolist() == [False, True]
    assert cluster.fits(ask(Want(1000, 3)), everywhere).tolist() == [False, False]
    assert cluster.fits(Ask(1, 20_000, NONE, ()), everywhere).tolist() == [False, False]
    cluster.take(ask(HALF), 0, [0])
    assert cluster.fits(ask(Want(1000, 2)), everywhere).tolist() == [False, True]


def test_random_uses_every_node_and_every_device() -> None:
    cluster = Cluster.of([machine(name) for name in "abcd"])
    replay(cluster, [ask(HALF, cpu=1)] * 16, Random(random.Random(3)))
    assert not cluster.left.any()
    cluster = Cluster.of(shuffled([machine(name) for name in "abcd"], random.Random(5)))
    replay(cluster, [ask(HALF, cpu=1)] * 4, Random(random.Random(3)))
    assert (cluster.left.sum(axis=1) < 2000).sum() > 1


def test_the_meter_takes_the_mean_of_what_rounds_to_a_level() -> None:
    meter = Meter(capacity=10_000)
    for _ in range(13):
        meter.note(ask(FULL), placed=len(meter.taken) <= 9)
    levels = meter.levels()
    assert {level: levels[level] for level in (50, 80, 90, 100, 130)} == {50: 50, 80: 80, 90: 90, 100: 90, 130: 90}
    assert 95 not in levels


def test_the_real_trace_is_read_whole() -> None:
    folder = openb.DEFAULT_DIR
    if not folder.is_dir():
        pytest.skip(f"the openb trace is not in {folder}")
    machines = openb.machines(folder)
    assert (len(machines), sum(one.gpus for one in machines)) == (1213, 6212)
    files = openb.workloads(folder)
    assert openb.name_of(files[-1]) == "default"
    assert len(openb.asks(files[-1])) == 8152
    assert round(openb.published(folder)["default", "fgd"][130], 2) == 95.39


def test_ours_goes_through_the_core_and_takes_the_models_that_it_may() -> None:
    machines = [machine("a"), machine("b", model="A10"), machine("c", gpus=0)]
    queue = [ask(FULL, models=("A10",))] * 3 + [ask(HALF)] * 4 + [ask(NONE)]
    shares = replay_core(machines, queue)
    assert shares[100] == pytest.approx(75.0)  # 2 whole devices of b, 2 halves of a, when as much has arrived
