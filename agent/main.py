"""The agent as a program: `python -m shoal.agent.main --config agent.yaml`. Wiring only.

SIGTERM and SIGINT end the agent and leave the node's containers running; the next agent takes them up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from shoal.agent import reserve
from shoal.agent.config import Config, ConfigError, load
from shoal.agent.copying import DiskCopier
from shoal.agent.core import Agent, AgentConfig, AgentPorts
from shoal.agent.images.port import ImageFault
from shoal.agent.images.settings import Settings
from shoal.agent.images.store import ImageStore
from shoal.agent.logs import DiskLogFiles
from shoal.agent.machine import Machine
from shoal.agent.machines import DevNode, RealMachine
from shoal.agent.metrics import AgentCollector, Durations
from shoal.agent.network.linux import LinuxNetwork
from shoal.agent.network.port import NetworkFault
from shoal.agent.node import Reserved
from shoal.agent.object_files import DiskObjects
from shoal.agent.probes.hooks import LiveHooks
from shoal.agent.probes.prober import LiveProber
from shoal.agent.runtime import seccomp
from shoal.agent.runtime.cgroups import CgroupError, open_cgroups
from shoal.agent.runtime.client import Client
from shoal.agent.runtime.port import RuntimeFault, RuntimeGone
from shoal.agent.runtime.settings import SettingsError
from shoal.agent.spawn import settings_of
from shoal.agent.state import DiskState, StateFault
from shoal.agent.volumes.disk import DiskVolumes
from shoal.agent.volumes.port import VolumeFault
from shoal.proto import logs
from shoal.proto.process import write_no_core

log = logging.getLogger("shoal.agent")
EXIT_FAILED, EXIT_USAGE = 1, 2
# What a machine can be at fault with: a message says what, and no trace of ours helps.
FAULTS = (StateFault, RuntimeFault, ImageFault, NetworkFault, VolumeFault, CgroupError, seccomp.ProfileError, OSError)
RESOLVED = Path("/run/systemd/resolve/resolv.conf")
FIRST_CONTACT_S = 15.0  # with the spawner; afterwards the agent goes on and tries again


class CannotRun(Exception):
    """The agent cannot begin; the message says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        path, flags = parse(argv)
        config = load(path, flags)
    except ConfigError as fault:
        print(fault, file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    write_no_core()
    logs.set_up(config.log_format, config.log_level)
    try:
        if os.geteuid() != 0:
            raise CannotRun("the agent makes namespaces and cgroups: run it as root")
        with locked(config.data):
            asyncio.run(serve(config))
    except (CannotRun, SettingsError, *FAULTS) as fault:
        log.error("the agent of node %s cannot run: %s", config.node, fault)
        return EXIT_FAILED
    except BaseExceptionGroup as group:
        known, rest = group.split(FAULTS)
        for known_fault in known.exceptions if known is not None else ():
            log.error("the agent of node %s cannot go on: %s", config.node, known_fault)
        if rest is not None:
            log.error("the agent of node %s failed", config.node, exc_info=rest)
        return EXIT_FAILED
    return 0


def parse(argv: Sequence[str] | None) -> tuple[Path | None, dict[str, Any]]:
    """The file, and the flags as settings; the file has more of them."""
    parser = argparse.ArgumentParser(prog="shoal-agent", description="Runs the pods that are assigned to this node.")
    parser.add_argument("--config", type=Path, help="a YAML file with the same settings and more")
    parser.add_argument("--node", help="this node's name, as in its certificate")
    parser.add_argument("--master", action="append", dest="masters", metavar="HOST:PORT", help="may be repeated")
    for name in ("ca", "certificate", "key"):
        parser.add_argument(f"--{name}", metavar="FILE", help="PEM")
    parser.add_argument("--address", help="where other nodes reach this one")
    parser.add_argument("--uplink", help="the link towards the other nodes")
    parser.add_argument("--data", metavar="FOLDER")
    parser.add_argument("--run", metavar="FOLDER")
    parser.add_argument("--cgroup", metavar="PATH", help="below each hierarchy's root")
    parser.add_argument("--http", action="append", metavar="HOST:PORT", help="metrics and health; may be repeated")
    parser.add_argument("--capacity", type=pairs, metavar="cpu=2,memory=4Gi", help="instead of the machine's own")
    parser.add_argument("--reserved", type=pairs, metavar="cpu=100m,memory=256Mi", help="kept off the pods")
    parser.add_argument("--extended-resources", type=pairs, metavar="shoal.dev/gpu=4", help="devices, by domain/name")
    parser.add_argument("--label", type=pairs, dest="labels", metavar="key=value,...")
    parser.add_argument("--boot-id", dest="boot_id", help="instead of the machine's own")
    parser.add_argument("--log-level", dest="log_level")
    parser.add_argument("--log-format", dest="log_format", help="logfmt or json")
    flags = vars(parser.parse_args(argv))
    return flags.pop("config"), flags


def pairs(text: str) -> dict[str, str]:
    items = [item.partition("=") for item in text.split(",") if item]
    if not all(equals for _, equals, _ in items):
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value,key=value")
    return {key: value for key, _, value in items}


@contextlib.contextmanager
def locked(data: Path) -> Iterator[None]:
    """One agent per data folder. Raises CannotRun."""
    data.mkdir(parents=True, exist_ok=True)
    with open(data / "agent.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise CannotRun(f"another agent already runs on {data}: end it, or give this one its own --data") from fault
        yield


async def serve(config: Config) -> None:
    """Opens the adapters, runs the agent until it is told to stop, closes them."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(open_runtime(config))
        await first_contact(runtime)
        durations = Durations()
        rng = random.Random(int.from_bytes(os.urandom(16)))  # noqa: S311 - for jitter and an identity, not for secrets
        ports = await open_ports(stack, config, runtime, rng, durations)
        kept = hold_to_share(config, ports.machine)
        agent = Agent(replace(core_config(config, kept), salt=os.urandom(32)), ports, time.time, rng, durations)
        await stack.enter_async_context(http_server(config, agent, durations))
        await run_until(agent, stop)


async def open_ports(
    stack: contextlib.AsyncExitStack, config: Config, runtime: Client, rng: random.Random, durations: Durations
) -> AgentPorts:
    """All adapters; the stack closes them."""
    # grpc comes after the spawner has been started: it starts threads at its import.
    from shoal.agent.grpc_link import Certificates, GrpcConnector
    from shoal.agent.probes import health

    connector = GrpcConnector(Certificates(config.ca, config.certificate, config.key))
    stack.push_async_callback(connector.close)
    machine = open_machine(config)
    images = await ImageStore.open(
        config.data / "images",
        machine.info().architecture,
        settings=Settings(config.registries, config.registry_credentials),
    )
    stack.push_async_callback(images.close)
    network = LinuxNetwork(config.data / "network", config.uplink or None)
    stack.callback(network.close)
    state = DiskState(config.data / "state")
    volumes = await DiskVolumes.open(config.data, config.run)
    stack.push_async_callback(volumes.close)
    prober = LiveProber(runtime, time.time, rng, health=health.check, meter=durations)
    stack.push_async_callback(prober.close)
    copier = DiskCopier()
    stack.callback(copier.close)
    return AgentPorts(
        runtime,
        images,
        network,
        machine,
        state,
        DiskLogFiles(),
        connector,
        volumes,
        prober,
        LiveHooks(runtime),
        DiskObjects(config.data / "state", config.run),
        copier,
    )


async def run_until(agent: Agent, stop: asyncio.Event) -> None:
    running = asyncio.create_task(agent.run(), name="agent")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not running.done():
        log.info("the agent ends; containers go on")
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        pass


def open_runtime(config: Config) -> Client:
    settings = settings_of(config)
    profile = seccomp.cached_profile(f"{settings.data}/seccomp")
    return Client(settings, seccomp=profile, start_spawner=config.spawner == "own")


async def first_contact(runtime: Client) -> None:
    """Finds the spawner, or starts it. Without one the agent goes on: pods say so, and it is tried again."""
    try:
        async with asyncio.timeout(FIRST_CONTACT_S):
            await runtime.sandboxes()
    except (RuntimeGone, TimeoutError) as fault:
        log.error("the node's spawner does not answer yet: %s", fault or runtime.problem)


def open_machine(config: Config) -> Machine:
    groups = open_cgroups(config.cgroup)
    host = RealMachine(config.data, config.overrides(), pods=lambda: groups.room(f"{groups.base}/pods"))
    told = config.dev_capacity()
    if told is None:
        return host
    base = groups.base
    return DevNode(host, config.node, told, used=lambda: groups.usage(base), room=lambda: groups.room(base))


def hold_to_share(config: Config, machine: Machine) -> Reserved:
    """Keeps the node's own share off its pods; what allocatable lacks."""
    capacity, pids = machine.capacity(), machine.signals().pids.capacity
    reserved = reserve.decided(config.reserved, capacity, pids)
    reserve.enforce(open_cgroups(config.cgroup), reserved, capacity, pids)
    return reserve.kept(reserved, config.eviction, capacity)


def core_config(config: Config, kept: Reserved) -> AgentConfig:
    return AgentConfig(
        node=config.node,
        address=config.address,
        masters=config.masters,
        log_root=str(config.data / "logs"),
        runs_root=str(config.data / "runtime/pods"),
        labels={"kubernetes.io/hostname": config.node, **config.labels},
        metrics_port=config.http[0][1] if config.http else 0,
        resolv_conf=pod_resolv_conf(config.resolv_conf, RESOLVED),
        reserved=kept,
        devices=config.extended_resources,
        eviction=config.eviction,
        image_gc=config.image_gc,
        hosts=read_hosts(Path("/etc/hosts")),
        seccomp_root=str(config.data / "seccomp-profiles"),
    )


def read_hosts(path: Path) -> str:
    """The node's own table, for pods on its network; "" when it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as fault:
        log.warning("%s cannot be read, pods on the node's network get one of their own: %s", path, fault)
        return ""


def pod_resolv_conf(path: Path, upstream: Path) -> str:
    """The node's resolv.conf for its pods. One that names nobody but the node's own resolver is of no use inside of
    them: then systemd-resolved's list of its servers, `upstream`, takes its place."""
    try:
        text = path.read_text()
        servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ") and line.split()[1:]]
        if servers and all(server.startswith("127.") or server == "::1" for server in servers):
            if upstream.exists():
                return upstream.read_text()
            log.warning("%s names only this node's own resolver %s, which no pod can reach", path, ", ".join(servers))
        return text
    except (OSError, UnicodeDecodeError) as fault:
        log.warning("%s cannot be read, pods get none: %s", path, fault)
        return ""


# ---- http ----
@contextlib.asynccontextmanager
async def http_server(config: Config, agent: Agent, durations: Durations) -> AsyncIterator[None]:
    """/metrics, /healthz and /readyz on the given addresses, and on no other."""
    registry = CollectorRegistry()
    registry.register(AgentCollector(agent, config.node, durations))

    async def metrics(_: web.Request) -> web.Response:
        await agent.refresh_usage()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        faults = agent.unready()
        text = "".join(f"[-]{fault}\n" for fault in faults) or "ok\n"
        return web.Response(text=text, status=503 if faults else 200)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        for host, port in config.http:
            await web.TCPSite(runner, host.strip("[]"), port, reuse_address=True).start()
        yield
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
