"""A development cluster of a benchmark's own, used through the command and over the API; gone when the block ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from prometheus_client.parser import text_string_to_metric_families

from shoal.deploy.cli import contexts
from shoal.deploy.demo import images
from shoal.deploy.devcluster import plan as plans
from shoal.proto.v1.cluster_pb2_grpc import ClusterStub

if TYPE_CHECKING:
    from shoal.proto.v1.cluster_pb2_grpc import ClusterAsyncStub

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / ".cache/demo-images"
COMMAND_SECONDS = 180.0
SCRAPE_SECONDS = 10.0

Figures = dict[tuple[str, str], float]  # (sample, labels as text) -> value


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` is what the command needs to reach it."""

    plan: plans.ClusterPlan
    environment: dict[str, str]

    def shoal(self, *arguments: str) -> str:
        """Runs the command; its output. Raises CalledProcessError."""
        return command(self.environment, *arguments)

    def load(self, name: str) -> None:
        """Loads one of the demo's images onto every node."""
        images.make(IMAGES, say=lambda text: None)
        self.shoal("image", "load", str(IMAGES / f"{name}.tar"))

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[ClusterAsyncStub]:
        """The Cluster service, over mutual TLS."""
        context = contexts.load(Path(self.environment["SHOAL_CONFIG"])).choose(self.plan.name)
        credentials = grpc.ssl_channel_credentials(*(context.pem(what) for what in ("ca", "key", "certificate")))
        async with grpc.aio.secure_channel(context.servers[0], credentials) as channel:
            await channel.channel_ready()
            yield ClusterStub(channel)

    def agents(self) -> Figures:
        """The metrics of all agents, summed."""
        total: Figures = {}
        for node in self.plan.nodes:
            for key, value in scrape(f"http://{node.address}:{self.plan.metrics_port}/metrics").items():
                total[key] = total.get(key, 0.0) + value
        return total

    def master(self) -> Figures:
        return scrape(f"http://127.0.0.1:{self.plan.http_ports[0]}/metrics")


def command(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*shoal_argv(), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=COMMAND_SECONDS,
    )
    return done.stdout


def shoal_argv() -> list[str]:
    """The installed command, as people start it."""
    script = Path(sys.executable).with_name("shoal")
    return [str(script)] if script.exists() else [sys.executable, "-m", "shoal.deploy.cli.main"]


def scrape(url: str) -> Figures:
    with urllib.request.urlopen(url, timeout=SCRAPE_SECONDS) as answer:
        text = answer.read().decode()
    figures: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            figures[sample.name, labels] = sample.value
    return figures


@contextmanager
def running(name: str, nodes: int = 3) -> Iterator[Cluster]:
    """Brings a cluster up; takes it down also when the block fails."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        environment = {**os.environ, "SHOAL_CONFIG": f"{folder}/config"}
        try:
            command(environment, "up", "--name", name, "--nodes", str(nodes))
            plan = plans.load(plans.DATA_ROOT / name)
            assert plan is not None, f"`shoal up` left no plan of {name}"
            yield Cluster(plan, environment)
        finally:
            command(environment, "down", "--name", name)
