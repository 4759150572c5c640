"""Files out of a container and into it, through its own root as its PID 1 sees it: no program in the image is needed.

The root is opened below /proc/<pid>, which names one process for ever (a pid that is used again is another one); paths
are resolved inside of it with openat2, so that no link of the container leads out. The work is done in threads.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from shoal.agent.answers import Refusal
from shoal.agent.runtime import syscalls
from shoal.agent.runtime.port import ContainerState
from shoal.proto.filetree import Reader, TreeFault, Unpacker, pack

MAX_COPIES = 8  # at once; more wait
IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
START_TICKS = 19  # of /proc/<pid>/stat, counted from what follows the name: field 22 of proc(5)
T = TypeVar("T")
Send = Callable[[bytes], Coroutine[Any, Any, None]]
Receive = Callable[[], Coroutine[Any, Any, bytes]]
Warn = Callable[[str], Coroutine[Any, Any, None]]


class Copier(Protocol):
    """Both raise Refusal and OSError, and what `send` and `receive` raise."""

    async def out(self, container: ContainerState, path: str, send: Send, warn: Warn) -> None:
        """Sends the tree at `path` as a tar stream."""
        ...

    async def into(self, container: ContainerState, path: str, receive: Receive) -> None:
        """Writes a tar stream (b"": its end) to `path`, or into it when it is a folder. `path/.`: the top's content
        goes into that folder."""
        ...


class DiskCopier:
    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._pool = ThreadPoolExecutor(MAX_COPIES, "copy")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def out(self, container: ContainerState, path: str, send: Send, warn: Warn) -> None:
        await self._in_thread(lambda hand: self._out(container, path, hand, send, warn))

    async def into(self, container: ContainerState, path: str, receive: Receive) -> None:
        await self._in_thread(lambda hand: self._into(container, path, hand, receive))

    async def _in_thread(self, work: Callable[[Hand], None]) -> None:
        """Cancelled, it still waits until the thread has let go of the container's files."""
        hand = Hand(asyncio.get_running_loop())
        running = asyncio.get_running_loop().run_in_executor(self._pool, work, hand)
        try:
            await asyncio.shield(running)
        except TreeFault as fault:
            raise Refusal(str(fault)) from fault
        finally:
            if not running.done():
                hand.stop()
                await asyncio.wait({running})
                running.exception()

    # ---- in the thread ----
    def _out(self, container: ContainerState, path: str, hand: Hand, send: Send, warn: Warn) -> None:
        root, _ = open_root(container, self._proc)
        try:
            found = resolve(root, path, os.O_PATH)
        finally:
            os.close(root)
        try:
            top = os.path.basename(os.path.normpath(path)) or "root"
            for data in pack(found, top, lambda line: hand(warn(line))):
                hand(send(data))
        finally:
            os.close(found)

    def _into(self, container: ContainerState, path: str, hand: Hand, receive: Receive) -> None:
        root, owner = open_root(container, self._proc)
        try:
            parent, name = place(root, path)
        finally:
            os.close(root)
        try:
            Unpacker(parent, name, owner).unpack(Reader(lambda: hand(receive())))
        finally:
            os.close(parent)


class Stopped(Exception):
    """Nobody waits for the copy any more."""


class Hand:
    """The loop's coroutines for a thread, one at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._stopped = False
        self._future: Future[Any] | None = None

    def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._stopped:
                work.close()
                raise Stopped
            future = self._future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            result: T = future.result()
            return result
        except CancelledError:
            raise Stopped from None

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._future is not None:
                self._future.cancel()


def open_root(container: ContainerState, proc: str = "/proc") -> tuple[int, tuple[int, int]]:
    """The container's root as an O_PATH descriptor, and its PID 1's user and group. Raises Refusal."""
    gone = Refusal(f"container {container.id.name} does not run any more: its files went with it")
    try:
        process = os.open(f"{proc}/{container.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise gone from None
    try:
        fields = _read(process, "stat").rpartition(")")[2].split()
        if int(fields[START_TICKS]) != container.start_ticks:
            raise gone
        lines = dict(line.partition(":")[::2] for line in _read(process, "status").splitlines())
        owner = int(lines["Uid"].split()[1]), int(lines["Gid"].split()[1])
        return os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process), owner
    except (FileNotFoundError, ProcessLookupError):
        raise gone from None
    finally:
        os.close(process)


def _read(folder: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)) as file:
        return file.read()


def resolve(root: int, path: str, flags: int) -> int:
    """A descriptor of what `path` is inside the root. Raises OSError with the path."""
    try:
        return syscalls.openat2(root, os.fsencode(path), flags, IN_ROOT)
    except ValueError:
        raise Refusal("a path must not hold a zero byte") from None
    except OSError as fault:
        raise OSError(fault.errno, os.strerror(fault.errno or 0), path) from fault


def place(root: int, path: str) -> tuple[int, str | None]:
    """Where a tree called `path` goes: its folder's descriptor, and its name there as Unpacker has it."""
    folder = os.O_RDONLY | os.O_DIRECTORY
    last = path.rstrip("/").rpartition("/")[2]
    if last in (".", ".."):
        return resolve(root, path, folder), ""
    try:
        found = resolve(root, path, os.O_PATH)
        try:
            if stat.S_ISDIR(os.fstat(found).st_mode):
                return resolve(root, path, folder), None
        finally:
            os.close(found)
    except FileNotFoundError:
        if path.endswith("/"):
            raise
    if not last:
        return resolve(root, "/", folder), None
    try:
        return resolve(root, path.rstrip("/").rpartition("/")[0] or "/", folder), last
    except FileNotFoundError as fault:
        raise Refusal(f"the folder {fault.filename} does not exist in the container: make it first") from fault
