"""Logs of one or many containers as they come: through lost connections, whole lines, nothing twice."""

from __future__ import annotations

import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from shoal.deploy.cli.client import Client
from shoal.deploy.cli.failures import CommandError, Refused
from shoal.deploy.cli.follow import follow
from shoal.deploy.cli.printers.text import lines_of
from shoal.deploy.cli.tamed import Tamer
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

RESUME_SECONDS = 60.0  # without an answer, before a lost log is given up
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
LONGEST_LINE = 256 * 1024  # bytes, where lines of several containers are kept apart
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # of a terminal

Note = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One container's log."""

    pod: o.Pod = field(compare=False)
    uid: str
    container: str

    @property
    def label(self) -> str:
        return f"pod/{self.pod.metadata.name}/{self.container}"

    @property
    def key(self) -> c.Key:
        meta = self.pod.metadata
        return c.Key(kind="Pod", namespace=meta.namespace, name=meta.name)


def say(text: str) -> None:
    print(lines_of(text), file=sys.stderr, flush=True)


# ---- one log ----
class Stream:
    """The bytes of one log. What is followed goes on after a lost connection where it was."""

    def __init__(self, client: Client, source: Source, options: s.LogsOpen, note: Note = say) -> None:
        self._client, self._source, self._options, self._note = client, source, options, note
        self._position: s.LogPosition | None = None
        self._since_position = self._total = 0  # bytes
        self._heard = 0.0  # when something came last, on time.monotonic's clock; 0: never
        self._pause = FIRST_PAUSE_SECONDS

    def pieces(self) -> Iterator[bytes]:
        """Raises CommandError."""
        if self._options.follow:
            self._wait_for_node()
        while True:
            try:
                yield from self._once()
                return
            except Refused as refused:
                if not self._may_go_on(refused):
                    raise
                if not self._still_there():
                    self._note(f"note: {self._source.label} is gone")
                    return

    def _once(self) -> Iterator[bytes]:
        for frame in self._client.logs(self._source.key, self._request()):
            self._heard, self._pause = time.monotonic(), FIRST_PAUSE_SECONDS
            if frame.progress:
                self._note(frame.progress)
            if frame.HasField("end"):
                if frame.end.error:
                    raise CommandError(frame.end.error)
                return
            self._since_position += len(frame.data)
            self._total += len(frame.data)
            if frame.HasField("position"):
                self._position, self._since_position = frame.position, 0
            if frame.data:
                yield frame.data
        raise Refused("Unavailable", "the stream broke off before its end", True)

    def _request(self) -> s.LogsOpen:
        request = s.LogsOpen()
        request.CopyFrom(self._options)
        request.container = self._source.container
        if self._position is not None:
            request.resume.CopyFrom(self._position)
            request.resume.skip_bytes += self._since_position
        if request.HasField("limit_bytes"):
            request.limit_bytes = max(request.limit_bytes - self._total, 0)
        return request

    def _may_go_on(self, refused: Refused) -> bool:
        """Whether it is worth asking again, after a pause."""
        lost_for = time.monotonic() - self._heard
        if not (self._options.follow and refused.retryable and self._heard) or lost_for > RESUME_SECONDS:
            return False
        if self._pause == FIRST_PAUSE_SECONDS:
            self._note(f"note: the log of {self._source.label} is interrupted, it will go on where it was: {refused}")
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        return True

    def _still_there(self) -> bool:
        meta = self._source.pod.metadata
        try:
            return self._client.get("Pod", meta.namespace, meta.name).metadata.uid == self._source.uid
        except Refused as refused:
            if refused.reason == "NotFound":
                return False
            raise

    def _wait_for_node(self) -> None:
        meta = self._source.pod.metadata
        if self._source.pod.spec.nodeName:
            return
        self._note(f"note: pod/{meta.name} is not on a node yet: waiting for it")
        for state in follow(self._client, ["Pod"], meta.namespace, None, fields=f"metadata.name={meta.name}"):
            found = [pod for pod in state.values() if isinstance(pod, o.Pod)]
            if not found or found[0].metadata.uid != self._source.uid:
                raise CommandError(f"pod/{meta.name} was deleted before it had started")
            if found[0].spec.nodeName:
                return


# ---- lines ----
class Lines:
    """Cuts pieces into whole lines, each with a prefix."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix, self._rest = prefix, b""

    def feed(self, data: bytes) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LONGEST_LINE:
            lines.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return self._prefix + rest + b"\n" if rest else b""


def prefix_of(source: Source, *, colour: bool) -> bytes:
    text = f"[{source.label}] "
    if colour:
        text = f"\x1b[{COLOURS[zlib.crc32(source.label.encode()) % len(COLOURS)]}m{text}\x1b[0m"
    return text.encode()


class Output:
    """Our standard output, shared by all streams: a lone one goes through as it is, others line by line. On a terminal
    it is tamed: whoever writes a log must not drive the terminal of whoever reads it."""

    def __init__(self, *, alone: bool, prefix: bool) -> None:
        self._alone, self._prefix = alone and not prefix, prefix
        terminal = sys.stdout.isatty()
        self._colour = prefix and terminal
        self._tamer = Tamer() if terminal else None
        self._lock = threading.Lock()

    def copy(self, source: Source, pieces: Iterable[bytes]) -> None:
        lines = Lines(prefix_of(source, colour=self._colour) if self._prefix else b"")
        try:
            for piece in pieces:
                self._write(piece if self._alone else lines.feed(piece))
        finally:
            self._write(lines.finish(), last=True)

    def _write(self, data: bytes, *, last: bool = False) -> None:
        with self._lock:
            if self._tamer is not None:
                data = self._tamer.feed(data) + (self._tamer.finish() if last else b"")
            if data:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()


# ---- many logs at once ----
class Crowd:
    """Follows several logs, each in a thread with a connection of its own. `sources_of` tells which containers of a
    pod are meant; with a selector, pods that come later join."""

    def __init__(self, connect: Callable[[], Client], options: s.LogsOpen, output: Output, *, ignore_errors: bool):
        self._connect, self._options, self._output = connect, options, output
        self._ignore_errors = ignore_errors
        self._events: queue.Queue[tuple[Source, Exception | None]] = queue.Queue()
        self._known: set[Source] = set()
        self._active: set[Source] = set()
        self._clients: list[Client] = []
        self._over = False

    def follow(
        self, sources: Sequence[Source], watch: Callable[[Client], Iterator[list[Source]]] | None, most: int
    ) -> None:
        """Until all have ended. Raises what the first failing one raised."""
        try:
            for source in sources:
                self._start(source)
            if watch is not None:
                threading.Thread(target=self._watch, args=(watch, self._new_client()), daemon=True).start()
            while self._active:
                source, fault = self._events.get()
                if source in self._active and fault is not _JOINS:
                    self._ended(source, fault)
                elif fault is _JOINS and source not in self._known:
                    self._join(source, most)
        finally:
            self._over = True
            for client in self._clients:
                client.close()

    def _start(self, source: Source) -> None:
        self._known.add(source)
        self._active.add(source)
        threading.Thread(target=self._run, args=(source, self._new_client()), daemon=True).start()

    def _new_client(self) -> Client:
        self._clients.append(self._connect())
        return self._clients[-1]

    def _run(self, source: Source, client: Client) -> None:
        try:
            self._output.copy(source, Stream(client, source, self._options).pieces())
            self._events.put((source, None))
        except Exception as fault:
            self._events.put((source, fault))
        finally:
            client.close()

    def _watch(self, watch: Callable[[Client], Iterator[list[Source]]], client: Client) -> None:
        try:
            for sources in watch(client):
                for source in sources:
                    self._events.put((source, _JOINS))
        except Exception as fault:
            if not self._over:
                say(f"note: pods that appear from now on are not followed: {fault}")

    def _join(self, source: Source, most: int) -> None:
        if len(self._active) >= most:
            self._known.add(source)
            say(f"note: {source.label} is not followed too: {most} streams are open, see --max-log-requests")
            return
        self._start(source)

    def _ended(self, source: Source, fault: Exception | None) -> None:
        self._active.discard(source)
        if fault is None:
            return
        if not (self._ignore_errors and isinstance(fault, CommandError)):
            raise fault
        say(f"note: {source.label}: {fault}")


_JOINS = Exception("a container that may join")
