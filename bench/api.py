"""Pods created over mutual TLS with 32 callers at once, one call each, each answer after etcd's.

One master and one etcd (with fsync), no nodes, scheduler or controllers; the load comes from a process of its own.
Last line: creates_per_s, p50_ms and p99_ms. `--seconds` and `--callers` change the load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
from tests.etcd import Server as EtcdServer
from tests.masterproc import MasterProcess, stub_of

from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

WARM_UP_SECONDS = 2.0
SPARE_SECONDS = 60.0  # beyond the load itself; more means that the master does not answer


def pod(name: str) -> c.Object:
    """A pod of about the size that people have."""
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name = name
    made.metadata.labels.update({"app": "web", "tier": "front", "version": "v1"})
    container = made.spec.containers.add(name="web", image="registry.example.com/team/web:1.2.3")
    container.ports.add(name="http", containerPort=8080)
    for index in range(5):
        container.env.add(name=f"SETTING_{index}", value="some value of a usual length")
    container.resources.requests["cpu"].text = "250m"
    container.resources.requests["memory"].text = "64Mi"
    container.resources.limits["memory"].text = "128Mi"
    return c.Object(kind="Pod", body=made.SerializeToString())


async def load(address: str, certs: Path, callers: int, seconds: float) -> None:
    """The load generator: prints its figures as JSON."""
    credentials = grpc.ssl_channel_credentials(
        (certs / "ca.crt").read_bytes(), (certs / "alice.key").read_bytes(), (certs / "alice.crt").read_bytes()
    )
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub = stub_of(channel)
        times: list[float] = []
        begin = time.monotonic() + WARM_UP_SECONDS
        end = begin + seconds

        async def caller(number: int) -> None:
            count = 0
            while (sent := time.monotonic()) < end:
                name = f"pod-{number}-{count}"
                request = c.WriteRequest(request_id=f"{address}/{name}", objects=[pod(name)])
                response = await stub.Create(request)
                assert response.results[0].action == "created", response
                if sent >= begin:
                    times.append(time.monotonic() - sent)
                count += 1

        await asyncio.gather(*(caller(number) for number in range(callers)))
    times.sort()
    percentiles = {f"p{p}_ms": round(times[min(len(times) - 1, len(times) * p // 100)] * 1000, 1) for p in (50, 99)}
    cpu = time.process_time()
    print(json.dumps({"creates_per_s": round(len(times) / seconds), **percentiles, "cpu": cpu}))


async def measure(callers: int, seconds: float) -> str:
    """Starts etcd, a master and the load; the last line."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-bench-", dir="."))
    etcd = EtcdServer(folder.absolute() / "etcd", fast=False)
    master = MasterProcess(folder.absolute(), etcd, settings={"loops": False})
    try:
        await etcd.start()
        master.start()
        async with master.channel() as channel:
            await master.until_leading(stub_of(channel))
        before = master.cpu_seconds(), etcd.cpu_seconds()
        command = [sys.executable, "-m", "bench.api", "--load", master.address, str(folder / "certs")]
        command += ["--callers", str(callers), "--seconds", str(seconds)]
        limit = WARM_UP_SECONDS + seconds + SPARE_SECONDS
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
        if done.returncode:
            raise SystemExit(f"the load failed: {done.stderr}{master.output()[-2000:]}")
        figures = json.loads(done.stdout.splitlines()[-1])
        total = figures["creates_per_s"] * (seconds + WARM_UP_SECONDS)
        spent = {
            "master": master.cpu_seconds() - before[0],
            "etcd": etcd.cpu_seconds() - before[1],
            "load": figures.pop("cpu"),
        }
        print("CPU per create, us: " + ", ".join(f"{who} {used / total * 1e6:.0f}" for who, used in spent.items()))
        return " ".join(f"{name}={value}" for name, value in figures.items())
    finally:
        master.close()
        etcd.remove()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--load", nargs=2, metavar=("ADDRESS", "CERTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that etcd and master go with it
    if options.load:
        asyncio.run(load(options.load[0], Path(options.load[1]), options.callers, options.seconds))
    else:
        print(asyncio.run(measure(options.callers, options.seconds)))


if __name__ == "__main__":
    main()
