"""GPUs allocated when a production cluster's trace is replayed until the arrived demand is 130 % of the capacity: by
Shoal's scheduler and by the policies of the published table, means over ten seeds. The folder is SHOAL_TRACE_DIR or
../shared/data/openb. Run as `python -m bench.trace`."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench import openb
from bench.openb import LEVELS, Ask, Machine, TraceError
from bench.openb_core import replay_core
from bench.openb_replay import SEEDS, BestFit, Cluster, Fgd, Policy, Random, arrivals, replay, shuffled

Shares = dict[int, float]  # allocated GPU % by level of arrival
POLICIES = ("random", "bestfit", "fgd", "ours")
TOLERANCE = 0.5  # points between a replay's mean and the published one
MARGIN = 1.5  # points over BestFit that are asked of ours


def one_seed(machines: Sequence[Machine], pods: Sequence[Ask], seed: int) -> dict[str, Shares]:
    """Every policy on the same queue and the same order of nodes."""
    rng = random.Random(seed)
    order = shuffled(machines, rng)
    queue = arrivals(pods, sum(machine.gpus for machine in machines) * 1000, rng)
    makers: dict[str, Callable[[Cluster], Policy]] = {
        "random": lambda _: Random(rng),
        "bestfit": lambda _: BestFit(),
        "fgd": lambda cluster: Fgd(cluster, pods),
    }
    found = {}
    for name, make in makers.items():
        cluster = Cluster.of(order)
        found[name] = replay(cluster, queue, make(cluster))
    found["ours"] = replay_core(order, queue)
    return found


def job(path: Path, file: Path, seed: int) -> dict[str, Shares]:
    return one_seed(openb.machines(path), openb.asks(file), seed)


def mean(results: Sequence[Shares]) -> Shares:
    return {level: sum(one[level] for one in results) / len(results) for level in LEVELS if level in results[0]}


def table(workload: str, means: Mapping[str, Shares], known: Mapping[tuple[str, str], Shares]) -> list[str]:
    """The allocated share by level of arrival, the published means below the replays."""
    lines = [f"{workload:24}" + "".join(f"{level:>7}" for level in LEVELS)]
    for policy in POLICIES:
        rows = {policy: means[policy], f"{policy} published": known.get((workload, policy), {})}
        for name, shares in rows.items():
            if shares:
                lines.append(f"  {name:22}" + "".join(f"{shares.get(level, float('nan')):7.2f}" for level in LEVELS))
    return lines


def misses(workload: str, means: Mapping[str, Shares], known: Mapping[tuple[str, str], Shares]) -> list[str]:
    """What is asked and does not hold, at the last level."""
    at = {policy: shares[LEVELS[-1]] for policy, shares in means.items()}
    found = []
    for policy in POLICIES:
        there = known.get((workload, policy), {}).get(LEVELS[-1])
        if there is not None and abs(at[policy] - there) > TOLERANCE:
            found.append(
                f"{workload}: {policy} {at[policy]:.2f} is more than {TOLERANCE} from {there:.2f}, as published"
            )
    if at["ours"] < at["fgd"]:
        found.append(f"{workload}: ours {at['ours']:.2f} is below fgd {at['fgd']:.2f}")
    if at["ours"] < at["bestfit"] + MARGIN:
        found.append(f"{workload}: ours {at['ours']:.2f} is less than {MARGIN} above bestfit {at['bestfit']:.2f}")
    return found


def measure(path: Path, seeds: Sequence[int]) -> None:
    files = openb.workloads(path)
    for file in files:
        openb.asks(file)  # so that a broken line is told before an hour has gone
    known = openb.published(path)
    last, wrong = [], []
    with ProcessPoolExecutor(min(len(seeds), os.cpu_count() or 1)) as pool:
        for file in files:
            results = list(pool.map(job, [path] * len(seeds), [file] * len(seeds), seeds))
            means = {policy: mean([one[policy] for one in results]) for policy in POLICIES}
            name = openb.name_of(file)
            print("\n".join(table(name, means, known)), flush=True)
            wrong += misses(name, means, known)
            there = known.get((name, "fgd"), {}).get(LEVELS[-1])
            figures = " ".join(f"{policy}={means[policy][LEVELS[-1]]:.2f}" for policy in ("ours", "fgd", "bestfit"))
            last.append(f"workload={name} {figures} published_fgd={'none' if there is None else f'{there:.2f}'}")
    print("\n".join(f"missed: {line}" for line in wrong) or "all that is asked holds")
    print("\n".join(last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, from 42 on")
    options = parser.parse_args()
    try:
        measure(openb.folder(), range(SEEDS[0], SEEDS[0] + max(1, options.seeds)))
    except TraceError as error:
        sys.exit(f"bench-trace: {error}")


if __name__ == "__main__":
    main()
