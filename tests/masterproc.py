"""A real master for tests: certificates, etcd in a folder, the program as a process, channels to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import grpc
import yaml

from shoal.deploy.certs.ca import Authority
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1.cluster_pb2_grpc import ClusterStub
from tests.etcd import Server as EtcdServer
from tests.etcd import free_port

if TYPE_CHECKING:
    from shoal.proto.v1.cluster_pb2_grpc import ClusterAsyncStub

START_SECONDS = 120.0
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1),)


@dataclass
class MasterProcess:
    """One `python -m shoal.master.main`."""

    folder: Path
    etcd: EtcdServer
    name: str = "master-0"
    settings: dict[str, Any] = field(default_factory=dict)
    python: tuple[str, ...] = ()  # what comes between the interpreter and the program

    def __post_init__(self) -> None:
        self.port, self.http_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.authority = Authority.ensure(self.folder / "certs")
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        own = self.authority.issue("master", self.name, ["127.0.0.1"])
        config: dict[str, Any] = {
            "name": self.name,
            "listen": [self.address],
            "advertise": self.address,
            "http": [f"127.0.0.1:{self.http_port}"],
            "ca": str(self.authority.certificate),
            "certificate": str(own.certificate),
            "key": str(own.key),
            "etcd": {"endpoints": [self.etcd.address]},
            "heartbeat_ms": 300,
            **self.settings,
        }
        path = self.folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        self._log = (self.folder / f"{self.name}.log").open("ab")
        command = [sys.executable, *self.python, "-m", "shoal.master.main", "--config", str(path)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)

    def output(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def channel(self, profile: str = "admin", name: str = "alice", *, certificate: bool = True) -> grpc.aio.Channel:
        """A channel as this caller; without a certificate when told so."""
        ca = self.authority.certificate.read_bytes()
        if not certificate:
            credentials = grpc.ssl_channel_credentials(ca)
        else:
            own = self.authority.issue(profile, name)
            credentials = grpc.ssl_channel_credentials(ca, own.key.read_bytes(), own.certificate.read_bytes())
        return grpc.aio.secure_channel(self.address, credentials, CHANNEL_OPTIONS)

    async def until_leading(self, stub: ClusterAsyncStub) -> None:
        """Waits until calls are answered."""
        key = c.Key(kind="Namespace", name="default")
        async with asyncio.timeout(START_SECONDS):
            while True:
                if self._process is not None and self._process.poll() is not None:
                    raise RuntimeError(f"the master ended: {self.output()[-3000:]}")
                try:
                    await stub.Get(c.GetRequest(key=key))
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it; its exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            status = process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if self._log is not None:
            self._log.close()
        return status

    async def ended(self) -> int:
        """Waits until it ends by itself; its exit status."""
        assert self._process is not None
        async with asyncio.timeout(START_SECONDS):
            while (status := self._process.poll()) is None:
                await asyncio.sleep(0.05)
        self.stop()
        return status

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_seconds(self) -> float:
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        if self._process is not None:
            self.stop(signal.SIGKILL)


def stub_of(channel: grpc.aio.Channel) -> ClusterAsyncStub:
    return ClusterStub(channel)
