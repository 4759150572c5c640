"""Pods from the API to their nodes: a real master, a real etcd (with fsync), hollow agents over mutual TLS.

WORKLOAD=basic, spread, antiaffinity, preferred, preemption, unschedulable or serial; ONE_CALL=1: one object per call;
NODES= and PODS= for smaller runs; PROFILE=1: where the master's time goes (cProfile, which slows it down).
Last line: bound_per_s, running_per_s, p50_ms and p99_ms (from a create's sending until the watch shows the binding),
master_rss_mib (the most that it had).
"""

from __future__ import annotations

import asyncio
import json
import os
import pstats
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bench.e2e_load import WORKLOADS, Refused, Workload, load, sized
from tests.etcd import Server as EtcdServer
from tests.masterproc import MasterProcess, stub_of

JOIN_S = 240.0
MEASURE_S = 900.0
ZONES = 10
PROCESSES = ("master", "etcd", "hollow", "load")


def resident(pid: int) -> tuple[float, float]:
    """Now and at most, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    now, most = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, most


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def hollow_nodes(count: int, master: MasterProcess, log: Path) -> Iterator[int]:
    """That many nodes; their process's id."""
    command = [sys.executable, "-m", "shoal.deploy.cli.main", "agent", "--hollow", str(count)]
    command += ["--authority", str(master.folder / "certs"), "--master", master.address]
    command += ["--hollow-zones", str(ZONES)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()


class Client:
    """The load as a process of its own."""

    def __init__(self, master: MasterProcess, name: str) -> None:
        command = [sys.executable, "-m", "bench.e2e", "--load", master.address, str(master.folder / "certs"), name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin and self.process.stdout
        self._in: IO[str] = self.process.stdin
        self._out: IO[str] = self.process.stdout

    def answer(self) -> dict[str, Any]:
        """Its next line. Raises Refused."""
        line = self._out.readline()
        said: dict[str, Any] = json.loads(line) if line else {"refused": "the load ended without a word"}
        if "refused" in said:
            raise Refused(said["refused"])
        return said

    def go(self) -> None:
        self._in.write("go\n")
        self._in.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


async def measure(name: str, workload: Workload, folder: Path) -> str:
    """Starts everything; the last line. Raises Refused."""
    etcd = EtcdServer(folder / "etcd", fast=False, quota_bytes=8 << 30)
    profile = folder / "master.prof" if os.environ.get("PROFILE") == "1" else None
    master = MasterProcess(folder, etcd, settings={"heartbeat_ms": 5000, "cluster_cidr": "10.0.0.0/8"})
    master.python = ("-m", "cProfile", "-o", str(profile)) if profile else ()
    master.authority.issue("admin", "alice")
    try:
        await etcd.start()
        master.start()
        async with master.channel() as channel:
            await master.until_leading(stub_of(channel))
        with hollow_nodes(workload.nodes, master, folder / "hollow.log") as hollow:
            figures = run(name, workload, master, {"master": master.pid, "etcd": etcd.pid, "hollow": hollow})
        if profile:
            master.stop()
            pstats.Stats(str(profile)).sort_stats("tottime").print_stats(45)
        return figures
    except Exception:
        print(master.output()[-2000:], (folder / "hollow.log").read_text()[-1000:], file=sys.stderr)
        raise
    finally:
        master.close()
        etcd.remove()


def run(name: str, workload: Workload, master: MasterProcess, pids: dict[str, int]) -> str:
    client = Client(master, name)
    begin = time.monotonic()
    try:
        client.answer()
        print(
            f"{name}: {workload.nodes} nodes and {workload.before} pods are there after "
            f"{time.monotonic() - begin:.0f} s; CPU so far, s: "
            + ", ".join(f"{who} {cpu_seconds(pid):.1f}" for who, pid in pids.items())
        )
        joined = resident(pids["master"])
        before = {who: cpu_seconds(pid) for who, pid in pids.items()}
        client.go()
        figures = client.answer()
    finally:
        client.end()
    spent = {who: cpu_seconds(pid) - before[who] for who, pid in pids.items()} | {"load": figures["cpu"]}
    now, most = resident(pids["master"])
    print(
        f"{workload.measured} pods created at {figures['created_per_s']:.0f}/s, all running after "
        f"{figures['seconds']:.2f} s; CPU per pod, us: "
        + ", ".join(f"{who} {used / workload.measured * 1e6:.0f}" for who, used in spent.items())
        + f"; cores busy: {sum(spent.values()) / figures['seconds']:.2f}"
    )
    print(
        f"resident, MiB: master {joined[0]:.0f} with all nodes, {now:.0f} at the end, {most:.0f} at most; "
        f"hollow {resident(pids['hollow'])[0]:.0f}, etcd {resident(pids['etcd'])[0]:.0f}"
    )
    return (
        f"bound_per_s={figures['bound_per_s']:.0f} running_per_s={figures['running_per_s']:.0f} "
        f"p50_ms={figures['p50_ms']:.1f} p99_ms={figures['p99_ms']:.1f} master_rss_mib={most:.0f}"
    )


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that all processes go with it
    if sys.argv[1:2] == ["--load"]:
        address, certs, name = sys.argv[2:]
        try:
            said: dict[str, Any] = asyncio.run(load(address, Path(certs), name, JOIN_S))
        except Refused as fault:
            said = {"refused": str(fault)}
        print(json.dumps(said), flush=True)
        return 0
    name = os.environ.get("WORKLOAD") or "basic"
    if name not in WORKLOADS:
        print(f"WORKLOAD={name}: choose one of {', '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="shoal-bench-", dir=".")).absolute()
    try:
        print(asyncio.run(measure(name, sized(WORKLOADS[name]), folder)))
    except Refused as fault:
        print(f"error: {name}: {fault}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
