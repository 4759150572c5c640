"""Registries for tests: docker's own (http, TLS, passwords, tokens), and one that misbehaves as told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from shoal.deploy.certs.ca import Authority
from tests.devcluster import until
from tests.etcd import ROOT, free_port

BINARY = ROOT / ".tools/docker-registry/usr/bin/docker-registry"
START_S = 90.0
USER, PASSWORD = "anna", "fish"
HTPASSWD = f"{USER}:$2b$04$Z5OJ/ONLVaV4RMxzBxtf6esHaxDTHQntN3TmRcd7sHwR4p3YHKFVe\n"
SERVICE, ISSUER = "test-registry", "test-issuer"


def binary() -> str:
    """docker's registry, which deploy/setup.sh unpacks."""
    if not BINARY.exists():
        subprocess.run(["bash", str(ROOT / "deploy/setup.sh"), "registry"], check=True, capture_output=True)
    return str(BINARY)


@dataclass(frozen=True, slots=True)
class Running:
    """A registry that answers. `address` is host:port, `ca` the authority of its certificate."""

    address: str
    folder: Path
    ca: Path | None = None

    def name(self, rest: str) -> str:
        return f"{self.address}/{rest}"


@contextlib.contextmanager
def registry(
    folder: Path,
    *,
    tls: bool = False,
    password: bool = False,
    token_realm: str = "",
    host: str = "127.0.0.1",
    port: int = 0,
    more: Mapping[str, Any] | None = None,
) -> Iterator[Running]:
    """docker's registry on a free port, or on `port`. `token_realm`: a token service with folder/token.crt."""
    folder.mkdir(parents=True, exist_ok=True)
    address = f"{host}:{port or free_port()}"
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": address},
        **(more or {}),
    }
    ca = None
    if tls:
        authority = Authority.ensure(folder / "certs", "registry")
        authority.issue("etcd", "registry", [host])
        ca = folder / "certs/ca.crt"
        config["http"]["tls"] = {
            "certificate": str(folder / "certs/registry.crt"),
            "key": str(folder / "certs/registry.key"),
        }
    if password:
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    if token_realm:
        config["auth"] = {
            "token": {
                "realm": token_realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(folder / "token.crt"),
            }
        }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary(), "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        until(lambda: _silence(process, address, folder), START_S)
        yield Running(address, folder, ca)
    finally:
        process.kill()
        process.wait()


def _silence(process: subprocess.Popen[bytes], address: str, folder: Path) -> str:
    """Why the registry does not answer yet."""
    if process.poll() is not None:
        raise RuntimeError((folder / "log").read_text())
    try:
        urllib.request.urlopen(f"http://{address}/v2/", timeout=1)
    except urllib.error.HTTPError:
        return ""  # TLS wanted, or a password: it is there
    except OSError as error:
        return str(error)
    return ""


def skopeo(*arguments: str) -> str:
    """Runs skopeo; its standard output."""
    command = ["skopeo", "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


# ---- tokens ----
class TokenSigner:
    """Signs what docker's registry takes for a token: a JWT with its certificate in the header."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(name, name, self._key.public_key(), 1, now - day, now + day)
        certificate = builder.sign(self._key, hashes.SHA256())
        self._der = certificate.public_bytes(serialization.Encoding.DER)
        (folder / "token.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def token(self, scope: str, life_s: int = 300) -> str:
        kind, _, rest = scope.partition(":")
        path, _, actions = rest.rpartition(":")
        access = [{"type": kind, "name": path, "actions": actions.split(",")}] if scope else []
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": USER,
            "aud": SERVICE,
            "exp": now + life_s,
            "nbf": now - 10,
            "iat": now,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        signed = f"{_part(header)}.{_part(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_text(signature)}"


def _part(document: Mapping[str, Any]) -> str:
    return _text(json.dumps(document).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---- one of our own ----
Handler = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Odd:
    """A small registry in this process. `before` may answer instead; `seen` counts "GET /v2/..."."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # tag or digest -> bytes, media type
    before: Handler | None = None
    seen: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    address: str = ""

    def publish(self, files: Mapping[str, bytes], tag: str = "1") -> str:
        """Takes the image of an OCI layout; its manifest's digest."""
        for path, data in files.items():
            if path.startswith("blobs/"):
                self.blobs[path.removeprefix("blobs/").replace("/", ":", 1)] = data
        [item, *_] = json.loads(files["index.json"])["manifests"]
        manifest = self.blobs[item["digest"]]
        for key in (tag, item["digest"]):
            self.manifests[key] = (manifest, item["mediaType"])
        return str(item["digest"])

    async def handle(self, request: web.Request) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        self.seen[line] += 1
        self.requests.append((line, dict(request.headers)))
        if self.before is not None:
            answer = await self.before(request)
            if answer is not None:
                return answer
        kind, _, last = request.path.rpartition("/")
        if kind.endswith("/manifests") and last in self.manifests:
            data, media_type = self.manifests[last]
            return web.Response(body=data, content_type=media_type)
        if kind.endswith("/blobs") and last in self.blobs:
            return ranged(request, self.blobs[last])
        if last == "" and request.path == "/v2/":
            return web.json_response({})
        return refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")


def ranged(request: web.Request, data: bytes) -> web.Response:
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    if not start:
        return web.Response(body=data)
    headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:], headers=headers)


def refusal(status: int, code: str, message: str, **headers: str) -> web.Response:
    body = {"errors": [{"code": code, "message": message}]}
    return web.json_response(body, status=status, headers={key.replace("_", "-"): v for key, v in headers.items()})


@contextlib.asynccontextmanager
async def serving(odd: Odd, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Odd]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", odd.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    assert site._server is not None
    odd.address = f"{host}:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    try:
        yield odd
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def serving_apart(odd: Odd, host: str, port: int) -> Iterator[Odd]:
    """As `serving`, in a thread of its own: for tests that wait for commands meanwhile."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="odd registry")
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(START_S)

    held = contextlib.AsyncExitStack()
    try:
        run(held.enter_async_context(serving(odd, host, port)))
        yield odd
    finally:
        run(held.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_S)
        loop.close()
