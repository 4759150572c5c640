"""A small cluster whose parts are killed while pods are in the midst of something, and a registry that can be held."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.deploy.devcluster.processes import Process, identify
from tests.behaviours.world import World
from tests.devcluster import PIDS, Cluster, until

BACK_SECONDS = 120.0
HALF_SECONDS = 240.0  # a held blob waits no longer for its other half

Fact = tuple[str, int, int]  # run's folder, pid, start ticks


# ---- processes ----
def facts(cluster: Cluster, uid: str) -> set[Fact]:
    """Every process of a pod: those of its containers and its holder, as its cgroups know them."""
    found: set[Fact] = set()
    for procs in (PIDS / cluster.plan.cgroup).glob(f"*/pods/{uid}/*/cgroup.procs"):
        with contextlib.suppress(FileNotFoundError):
            for pid in map(int, procs.read_text().split()):
                process = identify(pid)
                if process is not None:
                    found.add((procs.parent.name, process.pid, process.start_ticks))
    return found


def firsts(cluster: Cluster, uid: str) -> dict[str, Process]:
    """A pod's containers: their PID 1s by name."""
    return {name: c.process for (pod, name), c in cluster.containers().items() if pod == uid}


@dataclass(frozen=True, slots=True)
class Victim:
    """One part of the cluster, found anew at each call."""

    name: str
    find: Callable[[], Process | None]

    def running(self) -> Process:
        found = self.find()
        assert found is not None, f"{self.name} does not run"
        return found

    def freeze(self) -> Process:
        process = self.running()
        process.send(signal.SIGSTOP)
        return process

    def die(self) -> None:
        """Killed, and replaced by another process."""
        old = self.running()
        old.send(signal.SIGKILL)
        self.replaced(old)

    def replaced(self, old: Process) -> None:
        def missing() -> str:
            return "" if self.find() not in (None, old) else f"no other {self.name} runs yet"

        until(missing, BACK_SECONDS)


def victim(cluster: Cluster, kind: str, node: str, uid: str = "") -> Victim:
    """`kind`: agent, spawner, supervisor (of the pod `uid`), master or etcd."""
    find: Mapping[str, Callable[[], Process | None]] = {
        "agent": lambda: cluster.part(f"agent-{node}"),
        "spawner": lambda: cluster.spawner(node),
        "supervisor": lambda: cluster.supervisor(node, uid),
        "master": lambda: cluster.part("master-0"),
        "etcd": lambda: cluster.part("etcd"),
    }
    return Victim(f"{kind} of {node}", find[kind])


# ---- pods ----
def inside(process: Process, path: str) -> Path:
    """A path as the container sees it."""
    return Path(f"/proc/{process.pid}/root{path}")


def main_of(world: World, name: str, container: str = "main") -> Process:
    """A pod's running container, once the kernel has it."""
    uid = world.pod(name)["metadata"]["uid"]
    found: dict[str, Process] = {}

    def problem() -> str:
        found.update(firsts(world.cluster, uid))
        return "" if container in found else f"{container} of {name} does not run"

    until(problem, BACK_SECONDS)
    return found[container]


def restarts(pod: dict[str, Any]) -> dict[str, int]:
    status = pod["status"]
    every = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return {one["name"]: one["restartCount"] for one in every}


def until_file(path: Path, text: str = "", *, whole: bool = False) -> None:
    """Waits until a file has `text` in it, or is it: who writes it may not have come to it yet."""

    def problem() -> str:
        try:
            seen = path.read_text()
        except OSError as fault:
            return str(fault)
        return "" if seen == text or (text in seen and not whole) else f"{path}, not {text!r}: {seen[-200:]!r}"

    until(problem, BACK_SECONDS)


def until_gone(world: World, name: str) -> None:
    until(lambda: "" if world.attempt("get", "pod", name).returncode else f"{name} is still there", BACK_SECONDS)


def settled(cluster: Cluster) -> str:
    """Why the cluster is not whole: every part runs, every node is ready; "" when it is."""
    missing = [f"{name} does not run" for name in cluster.part_names() if cluster.part(name) is None]
    missing += [f"no spawner on {n.name}" for n in cluster.plan.nodes if cluster.spawner(n.name) is None]
    if missing:
        return "; ".join(missing)
    done = cluster.attempt("get", "nodes", "-o", "json")
    if done.returncode:
        return done.stderr
    conditions = [
        (n["metadata"]["name"], c) for n in json.loads(done.stdout)["items"] for c in n["status"]["conditions"]
    ]
    return "; ".join(f"{name} is not ready" for name, c in conditions if c["type"] == "Ready" and c["status"] != "True")


# ---- a registry ----
@dataclass
class Held:
    """A registry that sends half of each layer and then waits until `go` is set."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    halfway: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    large: int = 100_000  # bytes from which on a blob is held

    def publish(self, files: Mapping[str, bytes], tag: str) -> None:
        """Takes the image of an OCI layout."""
        for path, data in files.items():
            if path.startswith("blobs/"):
                self.blobs[path.removeprefix("blobs/").replace("/", ":", 1)] = data
        [item] = json.loads(files["index.json"])["manifests"]
        for key in (tag, item["digest"]):
            self.manifests[key] = (self.blobs[item["digest"]], item["mediaType"])

    def hold(self) -> None:
        self.halfway.clear()
        self.go.clear()


@contextlib.contextmanager
def held_registry(host: str, port: int) -> Iterator[Held]:
    held = Held()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            _, _, last = self.path.partition("?")[0].rpartition("/")
            body, kind = held.manifests.get(last) or (held.blobs.get(last, b""), "application/octet-stream")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200 if body or self.path == "/v2/" else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            with contextlib.suppress(OSError):  # the puller was killed
                self._send(body[start:])

        def _send(self, body: bytes) -> None:
            if len(body) < held.large:
                self.wfile.write(body)
                return
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            held.halfway.set()
            held.go.wait(HALF_SECONDS)
            self.wfile.write(body[half:])

    server = http.server.ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held.go.set()
        server.shutdown()
        server.server_close()
        thread.join()
