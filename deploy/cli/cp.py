"""`shoal cp`: files and folders out of a container and into it. Nothing is needed in the image, tar neither."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.completing import containers
from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.options import Session, with_session
from shoal.deploy.cli.printers.text import clean

if TYPE_CHECKING:
    from shoal.proto.v1 import session_pb2 as s

KINDS = frozenset({"po", "pod", "pods", "deploy", "deployment", "deployments", "rs", "replicaset", "replicasets"})
PATIENT_SECONDS, TICK_SECONDS = 1.0, 0.3  # before progress is shown, and between two times
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy. `pod` is "" for this machine; `namespace` "" means the session's."""

    path: str
    pod: str = ""
    namespace: str = ""


def place_of(text: str) -> Place:
    """POD:/PATH, NAMESPACE/POD:/PATH, or a path here (./a:b when it holds a colon). Raises CommandError."""
    head, colon, path = text.partition(":")
    if not colon or not head or head.startswith((".", "/")):
        return Place(text)
    namespace, _, pod = head.rpartition("/")
    if "/" in namespace or not pod:
        return Place(text)
    if namespace in KINDS:
        raise CommandError(f"{text}: before the pod stands its namespace: name a pod itself, as in web-0:{path}", USAGE)
    if not path.startswith("/"):
        raise CommandError(f"{text}: the path in the container must be absolute, as in {pod}:/tmp/file", USAGE)
    return Place(path, pod, namespace)


@click.command("cp")
@with_session
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("-c", "--container", metavar="NAME", help="Which container.", shell_complete=containers)
def command(session: Session, source: str, target: str, container: str | None) -> int:
    """Copy a file or a folder out of a container, or into one. A path in a container is POD:/PATH.

    \b
    shoal cp web-0:/etc/nginx ./nginx        a folder, out
    shoal cp site.conf prod/web-0:/etc/x/    a file, into a folder of pod web-0 in namespace prod
    shoal cp ./site/. web-0:/srv/site/.      what is in a folder

    What exists is replaced. Files written into a container belong to its user; links stay links.
    """
    origin, goal = place_of(source), place_of(target)
    if bool(origin.pod) == bool(goal.pod):
        raise CommandError("one of SOURCE and TARGET must be in a container, POD:/PATH, and the other here", USAGE)
    if not origin.path or not goal.path:
        raise CommandError("a path is empty", USAGE)
    from shoal.deploy.cli.pods import container_of, find_pod
    from shoal.proto.v1 import cluster_pb2 as c
    from shoal.proto.v1 import session_pb2 as s

    there = origin if origin.pod else goal
    if there.namespace:
        session.namespace_option = there.namespace
    pod = find_pod(session, there.pod)
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    options = s.CopyOpen(container=container_of(pod, container), path=there.path, out=bool(origin.pod))
    progress = Progress()
    try:
        if origin.pod:
            _out(progress.count(_data(session.client.copy(key, options, ()), progress)), origin.path, goal.path)
        else:
            upload = Upload(origin.path, progress)
            with upload.explained():
                for _ in _data(session.client.copy(key, options, progress.count(upload.pieces())), progress):
                    pass
    finally:
        progress.finish()
    return 0


class Progress:
    """Says on a terminal how much has gone, once it takes long."""

    def __init__(self) -> None:
        self._begun = self._shown = time.monotonic()
        self._wide = 0
        self._terminal = sys.stderr.isatty()

    def count(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        total = 0
        for piece in pieces:
            yield piece
            total += len(piece)
            now = time.monotonic()
            if self._terminal and now - self._begun > PATIENT_SECONDS and now - self._shown > TICK_SECONDS:
                self._shown = now
                self._show(f"{total / MIB:.1f} MiB, {total / MIB / (now - self._begun):.1f} MiB/s")

    def say(self, line: str) -> None:
        self.finish()
        print(clean(line), file=sys.stderr)

    def finish(self) -> None:
        if self._wide:
            self._show("")
            print(end="\r", file=sys.stderr, flush=True)
        self._wide = 0

    def _show(self, text: str) -> None:
        print("\r" + text.ljust(self._wide), end="", file=sys.stderr, flush=True)
        self._wide = len(text)


def _data(frames: Iterable[s.TunnelFrame], progress: Progress) -> Iterator[bytes]:
    """What the node sends, to its end. Raises CommandError."""
    for frame in frames:
        if frame.progress:
            progress.say(frame.progress)
        if frame.data:
            yield frame.data
        if frame.HasField("end"):
            if frame.end.error:
                raise CommandError(frame.end.error)
            return
    raise CommandError("the stream broke off before its end: not all of it is there")


class Upload:
    """The stream of what is here. grpc asks for it in a thread of its own and hides what goes wrong there."""

    def __init__(self, path: str, progress: Progress) -> None:
        self._path, self._progress = path, progress
        self._found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._fault: Exception | None = None

    def pieces(self) -> Iterator[bytes]:
        from shoal.proto.filetree import pack

        top = os.path.basename(os.path.normpath(os.path.abspath(self._path))) or "root"
        try:
            yield from pack(self._found, top, lambda line: self._progress.say(f"warning: {line}"))
        except Exception as fault:
            self._fault = fault
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raises what went wrong here instead of its consequences. Raises CommandError."""
        try:
            yield
        except CommandError:
            if isinstance(self._fault, OSError):
                raise CommandError(f"{self._path} cannot be read whole: {self._fault}") from None
            if self._fault is not None:
                raise CommandError(str(self._fault)) from None
            raise
        finally:
            os.close(self._found)


def _out(data: Iterator[bytes], path: str, target: str) -> None:
    from shoal.proto.filetree import Reader, TreeFault, Unpacker

    parent, name = _goal(path, target)
    try:
        Unpacker(parent, name).unpack(Reader(lambda: next(data, b"")))
        for _ in data:
            pass  # up to the node's last word
    except TreeFault as fault:
        raise CommandError(str(fault)) from None
    finally:
        os.close(parent)


def _goal(path: str, target: str) -> tuple[int, str]:
    """The folder here and the name in it, which only the command line decides, never the node."""
    folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    name = path.rstrip("/").rpartition("/")[2]
    whole = name in ("", ".", "..")  # the root, or what is in a folder
    if os.path.isdir(target):
        return os.open(target, folder), "" if whole else name
    if target.endswith("/"):
        raise CommandError(f"{target} is no folder here: make it first")
    above, last = os.path.split(target)
    try:
        return os.open(above or ".", folder), last
    except FileNotFoundError:
        raise CommandError(f"the folder {above} does not exist here: make it first") from None
