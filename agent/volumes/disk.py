"""The volumes of a node's pods on its disk and in its memory.

    <data>/volumes/<pod uid>/empty-dir/<volume>   emptyDir on disk
    <data>/volumes/<pod uid>/files/<volume>       configMap, downwardAPI, projected without secrets
    <run>/volumes/<pod uid>/<volume>              a tmpfs each: emptyDir in memory, and whatever holds a secret
    <data>/persistent/<volume>                    Shoal's own persistent volumes, which outlive their pods
    <data>/{volumes,persistent}/.trash/           what is being deleted

Everything blocking runs in this adapter's own threads. A crash between any two steps leaves what the next call of the
same kind finishes; after a reboot the memory volumes are gone and `prepare` makes them again.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from shoal.agent.volumes.files import FOLDER_MODE, write_files
from shoal.agent.volumes.folders import disk_usage, ensure_folder
from shoal.agent.volumes.hostpath import check_host_path
from shoal.agent.volumes.memory import ensure_memory, grow_memory, unmount_below
from shoal.agent.volumes.owner import give_to_group
from shoal.agent.volumes.port import EmptyDir, Files, HostPath, Local, Prepared, VolumeFault, VolumeSpec
from shoal.agent.volumes.trash import Trash

T = TypeVar("T")
THREADS = 4
LOCKS = 64
EMPTY, FILES, TRASH = "empty-dir", "files", ".trash"
PAGE = 4096
GENERATIONS = 2  # of files in one volume, while one replaces the other
LEAST_MEMORY = 8 << 20  # of a tmpfs for files: only what is in it takes memory
MEMORY_MODE, GROUP_MEMORY_MODE = 0o777, 0o2777
USAGE_SECONDS = 5.0  # of one pod's volumes
MAX_NAME = 253


class DiskVolumes:
    """The port `Volumes`; made by `open`, ended by `close`."""

    def __init__(self, data: Path, run: Path) -> None:
        self._volumes, self._persistent = f"{data}/volumes", f"{data}/persistent"
        self._memory = f"{run}/volumes"
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shoal-volumes")
        self._locks = [threading.Lock() for _ in range(LOCKS)]  # one call at a time for each pod
        self._trash = Trash(f"{self._volumes}/{TRASH}")
        self._removed = Trash(f"{self._persistent}/{TRASH}")

    @classmethod
    async def open(cls, data: Path, run: Path) -> DiskVolumes:
        """Makes the folders and goes on with what a crash has left. Raises VolumeFault."""
        made = cls(data, run)
        await made._thread(made._open)
        return made

    def _open(self) -> None:
        for folder in (self._volumes, self._persistent, self._memory):
            os.makedirs(folder, 0o700, exist_ok=True)
            os.chmod(folder, 0o700)
        self._trash.open()
        self._removed.open()

    async def close(self) -> None:
        """Waits for what is under way, but not for what is being deleted."""
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def being_deleted(self) -> int:
        return len(self._trash.left()) + len(self._removed.left())

    async def _thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Every OSError becomes a VolumeFault that says what to do."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(work, *arguments))
        except OSError as fault:
            raise VolumeFault(explain(fault)) from fault

    # ---- the port ----
    async def prepare(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> Mapping[str, Prepared]:
        return await self._thread(self._prepare, pod_uid, specs)

    async def update(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> None:
        await self._thread(self._update, pod_uid, specs)

    async def free(self, pod_uid: str) -> None:
        await self._thread(self._free, pod_uid)

    async def held(self) -> Sequence[str]:
        return await self._thread(self._held)

    async def usage(self, pod_uid: str) -> Mapping[str, int]:
        return await self._thread(self._usage, pod_uid)

    async def measure(self, folders: Sequence[str]) -> int:
        return await self._thread(self._measure, folders)

    async def remove_local(self, name: str) -> None:
        await self._thread(self._remove_local, name)

    # ---- in the threads ----
    @contextmanager
    def _locked(self, pod_uid: str) -> Iterator[None]:
        """A call that was given up goes on in its thread: the next one for the same pod waits for it."""
        _check_name(pod_uid, "pod uid")
        with self._locks[hash(pod_uid) % LOCKS]:
            yield

    def _prepare(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> Mapping[str, Prepared]:
        with self._locked(pod_uid):
            return {spec.name: self._prepare_one(pod_uid, spec) for spec in specs}

    def _prepare_one(self, pod_uid: str, spec: VolumeSpec) -> Prepared:
        _check_name(spec.name, "volume")
        try:
            match spec.source:
                case EmptyDir() as source:
                    return Prepared(spec.name, self._empty_dir(pod_uid, spec, source))
                case Files() as source:
                    return Prepared(spec.name, self._files(pod_uid, spec, source))
                case Local() as source:
                    return Prepared(spec.name, self._local(spec, source))
                case HostPath() as source:
                    return Prepared(spec.name, *check_host_path(source))
        except OSError as fault:
            raise VolumeFault(f"volume {spec.name}: {explain(fault)}") from fault
        except VolumeFault as fault:
            raise VolumeFault(f"volume {spec.name}: {fault}", retryable=fault.retryable) from fault

    def _empty_dir(self, pod_uid: str, spec: VolumeSpec, source: EmptyDir) -> str:
        if source.memory:
            path = self._memory_path(pod_uid, spec.name)
            mode = MEMORY_MODE if spec.fs_group is None else GROUP_MEMORY_MODE
            ensure_memory(path, source.size_bytes, mode, spec.fs_group or 0)
            return path
        path = f"{self._volumes}/{pod_uid}/{EMPTY}/{spec.name}"
        ensure_folder(path, spec.fs_group)
        return path

    def _files(self, pod_uid: str, spec: VolumeSpec, source: Files) -> str:
        path = self._files_path(pod_uid, spec)
        if source.secret:
            ensure_memory(path, LEAST_MEMORY, FOLDER_MODE)
            grow_memory(path, _memory_for(source))
        else:
            os.makedirs(path, 0o700, exist_ok=True)
        write_files(path, source.files, spec.fs_group)
        return path

    def _files_path(self, pod_uid: str, spec: VolumeSpec) -> str:
        secret = isinstance(spec.source, Files) and spec.source.secret
        return self._memory_path(pod_uid, spec.name) if secret else f"{self._volumes}/{pod_uid}/{FILES}/{spec.name}"

    def _memory_path(self, pod_uid: str, name: str) -> str:
        return f"{self._memory}/{pod_uid}/{name}"

    def _local(self, spec: VolumeSpec, source: Local) -> str:
        """Shoal's own folder is made when it is missing; a person's has to be there."""
        _check_name(source.name, "persistent volume")
        path = source.path or f"{self._persistent}/{source.name}"
        if not source.path:
            ensure_folder(path)
        elif not path.startswith("/") or not os.path.isdir(path):
            raise VolumeFault(f"PersistentVolume {source.name}: there is no folder {path} on this node; make it")
        if spec.fs_group is not None:
            give_to_group(path, spec.fs_group, always=spec.fs_group_always)
        return path

    def _update(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> None:
        with self._locked(pod_uid):
            for spec in specs:
                _check_name(spec.name, "volume")
                if isinstance(spec.source, Files) and os.path.isdir(self._files_path(pod_uid, spec)):
                    self._prepare_one(pod_uid, spec)

    def _free(self, pod_uid: str) -> None:
        with self._locked(pod_uid):
            memory = f"{self._memory}/{pod_uid}"
            if os.path.lexists(memory):
                unmount_below(memory)
                for name in os.listdir(memory):
                    os.rmdir(f"{memory}/{name}")
                os.rmdir(memory)
            self._trash.throw(f"{self._volumes}/{pod_uid}")

    def _held(self) -> Sequence[str]:
        names = {*os.listdir(self._volumes), *os.listdir(self._memory)}
        return sorted(name for name in names if not name.startswith("."))

    def _usage(self, pod_uid: str) -> Mapping[str, int]:
        _check_name(pod_uid, "pod uid")
        folder = f"{self._volumes}/{pod_uid}/{EMPTY}"
        over = time.monotonic() + USAGE_SECONDS
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except FileNotFoundError:
            return {}
        return {name: disk_usage(f"{folder}/{name}", over, time.monotonic) for name in names}

    def _measure(self, folders: Sequence[str]) -> int:
        over = time.monotonic() + USAGE_SECONDS
        return sum(disk_usage(folder, over, time.monotonic) for folder in folders if os.path.isdir(folder))

    def _remove_local(self, name: str) -> None:
        _check_name(name, "persistent volume")
        self._removed.throw(f"{self._persistent}/{name}")


def _memory_for(source: Files) -> int:
    """Both generations of the files, each in whole pages."""
    pages = sum(-(-len(file.content) // PAGE) for file in source.files.values())
    return max(LEAST_MEMORY, GENERATIONS * pages * PAGE + LEAST_MEMORY)


def _check_name(name: str, what: str) -> None:
    """It becomes a folder's name. Raises VolumeFault."""
    if not name or name.startswith(".") or "/" in name or "\0" in name or len(name) > MAX_NAME:
        raise VolumeFault(f"{name!r} cannot be the name of a {what}", retryable=False)


def explain(fault: OSError) -> str:
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on the node for {fault.filename or 'it'}: free some, or delete pods or images there"
    return f"{fault.filename or 'the node'}: {fault.strerror or fault}"
