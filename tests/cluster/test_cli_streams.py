"""Logs, exec and image loading over a small service of this file's own, which stands in for master and agent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.deploy.certs.ca import Authority
from shoal.deploy.cli import contexts
from shoal.deploy.cli.contexts import Context
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

WAIT_SECONDS = 120
FOLLOWED = "".join(f"line {number}\n" for number in range(20)).encode()


def pod() -> o.Pod:
    made = o.Pod(apiVersion="v1", kind="Pod")
    made.metadata.name, made.metadata.namespace, made.spec.nodeName = "web", "default", "n1"
    made.spec.containers.add(name="app", image="i")
    return made


class Service:
    """What a cluster with one pod answers."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.busy = 0  # answers UNAVAILABLE so often first

    def version(self, request: Any, context: grpc.ServicerContext) -> c.VersionResponse:
        if self.busy:
            self.busy -= 1
            failure = c.Failure(reason="NotLeader", message="no leader is known now", retryable=True)
            context.set_trailing_metadata((("shoal-failure-bin", failure.SerializeToString()),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "no leader")
        return c.VersionResponse(version="9")

    def get(self, request: c.GetRequest, context: grpc.ServicerContext) -> c.Object:
        return c.Object(kind="Pod", body=pod().SerializeToString(), revision=7)

    def apply(self, request: c.WriteRequest, context: grpc.ServicerContext) -> c.WriteResponse:
        self.asked.append(request)
        passing = c.Failure(reason="UnknownOutcome", message="etcd did not answer", retryable=True)
        if len(self.asked) < 3:
            return c.WriteResponse(results=[c.WriteResult(failure=passing) for _ in request.objects])
        return c.WriteResponse(results=[c.WriteResult(object=each, action="created") for each in request.objects])

    def logs(self, request: c.LogsRequest, context: grpc.ServicerContext) -> Iterator[s.TunnelFrame]:
        self.asked.append(request)
        if request.options.follow:
            yield from self.followed(request, context)
            return
        yield s.TunnelFrame(data=b"one\n\xff")
        yield s.TunnelFrame(data=b"two\n")
        error = "the log is not there any more" if request.options.previous else ""
        yield s.TunnelFrame(end=s.TunnelEnd(error=error))

    def followed(self, request: c.LogsRequest, context: grpc.ServicerContext) -> Iterator[s.TunnelFrame]:
        """Numbered lines; it breaks off every third frame, in the midst of a line. A position is a byte of the text."""
        place = request.options.resume
        begin = place.offset + place.skip_bytes
        rest = FOLLOWED[begin:]
        if request.options.HasField("limit_bytes"):
            rest = rest[: request.options.limit_bytes]
        yield s.TunnelFrame(position=s.LogPosition(offset=place.offset, skip_bytes=place.skip_bytes))
        for frame, at in enumerate(range(0, len(rest), 7)):
            if frame == 3:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the master ended")
            piece = rest[at : at + 7]
            known = s.LogPosition(offset=begin + at + len(piece)) if frame == 1 else None
            yield s.TunnelFrame(data=piece, position=known)
        yield s.TunnelFrame(end=s.TunnelEnd())

    def top(self, request: c.TopRequest, context: grpc.ServicerContext) -> c.TopResponse:
        made = c.TopResponse(missing=["n9"])
        for name, cores in (("a", 0.1), ("b", 1.25)):
            used = [s.ContainerUsage(container=each, cpu_cores=cores, memory_bytes=3 << 20) for each in ("x", "y")]
            made.pods.add(namespace="default", name=name, containers=used)
            made.nodes.add(name=name, cpu_cores=cores, cpu_allocatable=2, memory_bytes=1 << 30)
        return made

    def exec(self, requests: Iterator[c.ExecRequest], context: grpc.ServicerContext) -> Iterator[s.TunnelFrame]:
        start = next(requests).start
        words = list(start.options.command)
        if words == ["cat"]:
            for request in requests:
                if request.frame.WhichOneof("frame") == "close_input":
                    break
                yield s.TunnelFrame(data=request.frame.data.upper())
        elif words == ["vanish"]:
            context.abort(grpc.StatusCode.UNAVAILABLE, "node-1 broke off")
        else:
            yield s.TunnelFrame(stderr=f"no {words}\n".encode())
        code = int(words[1]) if words[0] == "exit" else 0
        yield s.TunnelFrame(end=s.TunnelEnd(exit_code=code))

    def load(
        self, requests: Iterator[c.LoadImageRequest], context: grpc.ServicerContext
    ) -> Iterator[c.LoadImageResponse]:
        next(requests)
        size = sum(len(request.data) for request in requests)
        yield c.LoadImageResponse(node="n1", progress="unpacking")
        yield c.LoadImageResponse(node="n1", done=True, progress=f"loaded {size}", images=["a:1"])
        if size % 2:
            yield c.LoadImageResponse(node="n2", done=True, error="the disk is full")


def handlers(service: Service) -> grpc.GenericRpcHandler:
    def made(maker: Callable[..., Any], call: Any, request: Any) -> Any:
        return maker(call, request.FromString, lambda message: message.SerializeToString())

    methods = {
        "Version": made(grpc.unary_unary_rpc_method_handler, service.version, c.VersionRequest),
        "Get": made(grpc.unary_unary_rpc_method_handler, service.get, c.GetRequest),
        "Apply": made(grpc.unary_unary_rpc_method_handler, service.apply, c.WriteRequest),
        "Logs": made(grpc.unary_stream_rpc_method_handler, service.logs, c.LogsRequest),
        "Exec": made(grpc.stream_stream_rpc_method_handler, service.exec, c.ExecRequest),
        "Top": made(grpc.unary_unary_rpc_method_handler, service.top, c.TopRequest),
        "LoadImage": made(grpc.stream_stream_rpc_method_handler, service.load, c.LoadImageRequest),
    }
    return grpc.method_handlers_generic_handler("shoal.v1.Cluster", methods)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.ensure(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def service(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    own, admin = authority.issue("master", "m", ["127.0.0.1"]), authority.issue("admin", "alice")
    ca = authority.certificate.read_bytes()
    pair = (own.key.read_bytes(), own.certificate.read_bytes())
    pool = ThreadPoolExecutor(4)
    server, made = grpc.server(pool), Service()
    server.add_generic_rpc_handlers((handlers(made),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], ca, True))
    server.start()
    path = tmp_path / "config"
    servers = (f"127.0.0.1:{port}",)
    context = Context("t", servers, str(authority.certificate), str(admin.certificate), str(admin.key))
    contexts.put(context, path=path)
    monkeypatch.setenv("SHOAL_CONFIG", str(path))
    yield made
    server.stop(0).wait()
    pool.shutdown()


def shoal(*arguments: str, data: bytes = b"") -> tuple[int, bytes, str]:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.deploy.cli.main", *arguments],
        input=data,
        capture_output=True,
        env=dict(os.environ),
        timeout=WAIT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_logs_pass_bytes_on(service: Service) -> None:
    code, out, _ = shoal("logs", "web", "--tail", "5", "--timestamps")
    assert (code, out) == (0, b"one\n\xfftwo\n")
    options = service.asked[0].options
    assert (options.container, options.tail_lines, options.timestamps) == ("app", 5, True)
    assert not options.HasField("since")
    code, _, err = shoal("logs", "web", "-p")
    assert (code, "the log is not there any more" in err) == (1, True)
    code, _, err = shoal("logs", "web", "-c", "nope")
    assert (code, 'has no container "nope": it has app' in err) == (1, True)


def test_a_followed_log_goes_on_where_it_was_cut_off(service: Service) -> None:
    code, out, err = shoal("logs", "-f", "web")
    assert (code, out) == (0, FOLLOWED)
    assert len(service.asked) > 3 and err.count("is interrupted, it will go on where it was") == len(service.asked) - 1
    code, out, _ = shoal("logs", "-f", "web", "--prefix")
    lines = [b"[pod/web/app] " + line for line in FOLLOWED.splitlines()]
    assert (code, out.splitlines()) == (0, lines), "no colour, as this is no terminal"
    code, out, _ = shoal("logs", "-f", "web", "--limit-bytes", "60")
    assert (code, out) == (0, FOLLOWED[:60])


def test_what_logs_refuses(service: Service) -> None:
    for words, text in (
        ((), "name a pod"),
        (("web", "-l", "a=b"), "one of the two"),
        (("web", "-c", "a", "--all-containers"), "exclude each other"),
        (("web", "-f", "-p"), "exclude each other"),
        (("web", "--since", "1m", "--since-time", "2026-01-02T03:04:05Z"), "exclude each other"),
        (("-l", "a in ("), "a in ("),
        (("web", "--since-time", "2026-13-02T03:04:05Z"), "is not a time"),
    ):
        code, _, err = shoal("logs", *words)
        assert (code, text in err, "Traceback" in err) == (2, True, False), (words, err)


def test_top(service: Service) -> None:
    code, out, err = shoal("top", "pods", "--sort-by", "cpu")
    rows = [line.split() for line in out.decode().splitlines()]
    assert rows == [["NAME", "CPU(cores)", "MEMORY(bytes)"], ["b", "2500m", "6Mi"], ["a", "200m", "6Mi"]]
    assert (code, err) == (0, "warning: node n9 does not answer\n")
    rows = [line.split() for line in shoal("top", "po", "-A", "--containers", "--no-headers")[1].decode().splitlines()]
    assert rows[0] == ["default", "a", "x", "100m", "3Mi"] and len(rows) == 4
    rows = [line.split() for line in shoal("top", "nodes")[1].decode().splitlines()]
    assert rows[1] == ["a", "100m", "5%", "1024Mi", "<unknown>"]
    code, _, err = shoal("top", "deployments")
    assert (code, "pods or nodes" in err) == (2, True)


def test_a_reader_that_goes_is_no_error(service: Service) -> None:
    line = f"{sys.executable} -m shoal.deploy.cli.main logs web | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=WAIT_SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"o", b"")


def test_exec_passes_codes_streams_and_input_on(service: Service) -> None:
    assert shoal("exec", "web", "--", "exit", "42") == (42, b"", "no ['exit', '42']\n")
    sent = b"hello\n" * 100_000
    assert shoal("exec", "-i", "web", "--", "cat", data=sent) == (0, sent.upper(), "")
    code, _, err = shoal("exec", "web", "--", "vanish")
    assert (code, "node-1 broke off" in err) == (1, True)


def test_an_election_is_waited_for(service: Service) -> None:
    service.busy = 3
    assert shoal("version")[0] == 0
    service.busy = 2
    assert shoal("exec", "web", "--", "exit", "3")[0] == 3


def test_a_write_that_failed_in_passing_is_sent_again_as_the_same(service: Service) -> None:
    text = b"{apiVersion: v1, kind: Namespace, metadata: {name: a}}"
    assert shoal("apply", "-f", "-", data=text) == (0, b"namespace/a created\n", "")
    assert len(service.asked) == 3
    assert len({request.request_id for request in service.asked}) == 1


def test_image_load(service: Service, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"x" * 300_000)
    code, out, err = shoal("image", "load", str(archive))
    assert (code, out, err) == (0, b"n1: loaded 300000 (a:1)\n", "n1: unpacking\n")
    assert shoal("image", "load", "-", data=b"x" * 301)[0] == 1
    code, _, err = shoal("image", "load", str(archive), "/nowhere.tar")
    assert (code, err) == (1, "error: /nowhere.tar: No such file or directory\n")
