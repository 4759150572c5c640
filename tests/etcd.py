"""A real etcd for tests: fetched beside the checkout, run on free loopback ports in a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.master.model import Fault
from shoal.master.store.etcd import Etcd, Tls

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0


def binary() -> str:
    """The path of etcd, which is fetched first when needed."""
    fetched = subprocess.run(["bash", str(ROOT / "deploy/setup.sh"), "etcd"], capture_output=True, text=True)
    if fetched.returncode:
        raise RuntimeError(f"etcd could not be fetched: {fetched.stderr.strip()}")
    return fetched.stdout.strip()


PORTS = range(15_000, 32_000)  # below the kernel's own choice (32768 and up), which any connection may take meanwhile
_given: set[int] = set()


def free_port() -> int:
    """One that nobody listens on, and that this run has not been given before."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("", port))
            if port not in _given:
                _given.add(port)
                return port


@dataclass
class Server:
    """One etcd process; `folder` holds its data, certificates and log. With `fast` its writes are not synced."""

    folder: Path
    quota_bytes: int = 1 << 30
    tls: Tls | None = None
    fast: bool = True
    arguments: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self._peer = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        scheme = "https" if self.tls else "http"
        command = [
            binary(), "--name=shoal-test", f"--data-dir={self.folder / 'data'}", "--log-level=warn",
            f"--listen-client-urls={scheme}://{self.address}", f"--advertise-client-urls={scheme}://{self.address}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer}",
            f"--initial-cluster=shoal-test=http://127.0.0.1:{self._peer}",
            f"--quota-backend-bytes={self.quota_bytes}", *self.arguments,
        ]  # fmt: skip
        if self.fast:
            command.append("--unsafe-no-fsync")
        if self.tls:
            command += ["--client-cert-auth", f"--trusted-ca-file={self.folder / 'ca.pem'}"]
            command += [f"--cert-file={self.folder / 'server.pem'}", f"--key-file={self.folder / 'server.key'}"]
        self._log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        client = self.client(timeout=1.0)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    if self._process.poll() is not None:
                        raise RuntimeError(f"etcd ended: {(self.folder / 'log').read_text()[-2000:]}")
                    with contextlib.suppress(Fault):
                        await client.range(b"/", b"")
                        return
                    await asyncio.sleep(0.05)
        finally:
            await client.close()

    def client(self, timeout: float = 10.0) -> Etcd:
        return Etcd([self.address], self.tls, timeout)

    def kill(self) -> None:
        """SIGKILL; the data stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def cpu_seconds(self) -> float:
        """CPU time that it has used."""
        assert self._process
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def remove(self) -> None:
        """Ends it and deletes its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """A TCP proxy in front of a server. `swallow_answers`: what the client sends passes, what comes back does not."""

    def __init__(self, target: Server) -> None:
        self._target = target
        self.swallow_answers = False
        self.swallowed = 0  # bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Ends every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink, back in ((reader, far_writer, False), (far_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, back))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: bool) -> None:
        try:
            while data := await source.read(65536):
                if back and self.swallow_answers:
                    self.swallowed += len(data)
                    continue
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(sink)
            sink.transport.abort()


def make_tls(folder: Path) -> Tls:
    """An authority, a server's and a client's certificate in `folder`; the client's side of it."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("shoal-test-ca", ca_key, None, ca_key)
    server_key, client_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    server = _certificate("etcd", server_key, ca, ca_key)
    client = _certificate("client", client_key, ca, ca_key)
    (folder / "ca.pem").write_bytes(_pem(ca))
    (folder / "server.pem").write_bytes(_pem(server))
    (folder / "server.key").write_bytes(_key_pem(server_key))
    return Tls(_pem(ca), _pem(client), _key_pem(client_key))


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
