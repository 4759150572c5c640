"""Runs one master: reads the configuration, opens the sockets, wires the parts. Nothing is decided here."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

import shoal
from shoal.master import config as configuration
from shoal.master import http_server
from shoal.master.api.forward import Forwarder
from shoal.master.api.grpc_server import SERVER_OPTIONS, ClusterAdapter, Remote, credentials
from shoal.master.config import Config, ConfigError
from shoal.master.core import Master, Settings
from shoal.master.decision_log import DecisionLog
from shoal.master.dispatcher.dispatcher import Config as DispatcherConfig
from shoal.master.dispatcher.grpc_link import AgentsAdapter
from shoal.master.metrics import MasterCollector, Meters, StateCollector
from shoal.master.model import NotLeader
from shoal.master.store.etcd import Etcd, Tls
from shoal.master.store.etcd_lease import ThreadRenewer
from shoal.master.store.metered import Metered
from shoal.proto import logs
from shoal.proto.process import write_no_core

log = logging.getLogger("shoal.master")

GC_THRESHOLDS = (10_000, 20, 100)  # objects are freed by their counts; full passes only disturb
STOP_SECONDS = 1.0  # for calls that are under way when the master ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 ended on request, 1 could not start or failed."""
    try:
        config = configuration.load(sys.argv[1:] if arguments is None else arguments)
        secrets = Secrets.read(config)
    except ConfigError as error:
        print(f"shoal-master: {error}", file=sys.stderr)  # noqa: T201
        return 1
    write_no_core()
    logs.set_up(config.log_format)
    try:
        asyncio.run(run(config, secrets))
    except ConfigError as error:
        log.error("%s", error)
        return 1
    return 0


class Secrets:
    """The PEM files of a configuration, read once. Raises ConfigError."""

    def __init__(self, own: tuple[bytes, bytes, bytes], etcd: Tls | None) -> None:
        self.ca, self.certificate, self.key = own
        self.etcd = etcd

    @classmethod
    def read(cls, config: Config) -> Secrets:
        own = (_file(config.ca), _file(config.certificate), _file(config.key))
        if config.etcd_ca is None or config.etcd_certificate is None or config.etcd_key is None:
            return cls(own, None)
        return cls(own, Tls(_file(config.etcd_ca), _file(config.etcd_certificate), _file(config.etcd_key)))


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; `python -m shoal.deploy.certs` makes one") from None


def boot_time() -> float:
    """Seconds; goes on while the machine sleeps, so that a lease does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Front:
    """Who answers a call: this master, or the leader through the forwarder."""

    def __init__(self, master: Master, forwarder: Forwarder) -> None:
        self._master = master
        self._forwarder = forwarder
        self.leading = master.leading
        self.reading = master.reading

    def remote(self) -> Remote:
        address = self._master.leader_address()
        if not address:
            raise NotLeader("no leader is known now, one is being elected: ask again")
        self._forwarder.lead_to(address)
        return self._forwarder


async def run(config: Config, secrets: Secrets) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError when an address cannot be listened on."""
    registry = CollectorRegistry()
    meters = Meters(registry)
    decisions = _decision_log(config)
    port = Metered(Etcd(config.etcd_endpoints, secrets.etcd), meters.etcd)
    master = Master(
        Settings(
            config.name,
            config.advertise,
            DispatcherConfig(cluster_cidr=config.cluster_cidr, heartbeat_period=config.heartbeat_ms / 1000),
            config.loops,
            config.deaths_kept_hours * 3600.0,
            config.profiles,
            decisions,
        ),
        port,
        ThreadRenewer(config.etcd_endpoints, secrets.etcd, boot_time),
        time.time,
        boot_time,
        random.SystemRandom(),
        meters,
        _loaded,
    )
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    registry.register(StateCollector(lambda: master.store.view))
    registry.register(MasterCollector(config.name, master))
    forwarder = Forwarder(secrets.ca, secrets.certificate, secrets.key)
    server = await _serve(config, secrets, master, forwarder)
    try:
        web = http_server.application(registry, master.ready, lambda: master.store.view)
        runner = await http_server.serve(web, [_split(address) for address in config.http])
    except OSError as error:
        await server.stop(None)
        raise ConfigError(f"cannot serve http on {', '.join(config.http)}: {error.strerror}") from None
    try:
        await _until_signal(master)
    finally:
        await server.stop(STOP_SECONDS)
        await runner.cleanup()
        await master.close()
        await forwarder.close()
        await port.close()
        if decisions is not None:
            decisions.close()


def _decision_log(config: Config) -> DecisionLog | None:
    """Raises ConfigError when its folder is not there."""
    if config.decision_log is None:
        return None
    if not config.decision_log.parent.is_dir():
        raise ConfigError(f"decision_log: there is no folder {config.decision_log.parent}; make it, or name another")
    made = DecisionLog(config.decision_log, config.decision_log_mib, shoal.__version__)
    made.start()
    return made


async def _serve(config: Config, secrets: Secrets, master: Master, forwarder: Forwarder) -> grpc.aio.Server:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    ClusterAdapter(Front(master, forwarder), master.meters.request).add_to(server)
    AgentsAdapter(lambda: master).add_to(server)
    admitted = credentials(secrets.ca, secrets.certificate, secrets.key)
    for address in config.listen:
        try:
            bound = server.add_secure_port(address, admitted)
        except RuntimeError:
            bound = 0
        if not bound:
            raise ConfigError(f"cannot listen on {address}: is another program there, or is it no address of ours?")
    await server.start()
    log.info("serves on %s", ", ".join(config.listen))
    return server


async def _until_signal(master: Master) -> None:
    """Runs the master; a signal ends it, with the leadership given back."""
    running = asyncio.ensure_future(master.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        log.info("ends on request")


def _loaded() -> None:
    """The cluster's state lives long: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    sys.exit(main())
