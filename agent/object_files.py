"""The objects of a node's pods over restarts of the agent.

    <state>/objects/<hash>    ConfigMaps, claims and volumes
    <run>/secrets/<hash>      Secrets: a tmpfs of its own, gone with the machine's memory, and with the last Secret

Each file is a line `shoal-object 1 <sha256 of the rest>`, then an AssignedObject; readable by root alone. It is written
beside its place, synced and renamed, so that a full disk or a crash leaves the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from google.protobuf.message import DecodeError

from shoal.agent.objects import MemoryObjects, Referred, body_of, object_of, reference_of
from shoal.agent.state import StateFault
from shoal.agent.volumes.memory import ensure_memory, unmount_below
from shoal.proto.references import SECRET, Reference
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.objects")
MAGIC = b"shoal-object 1 "
SECRETS_BYTES = 1 << 30  # the bound of their tmpfs: only what is in it takes memory
HALF = ".new"


class DiskObjects(MemoryObjects):
    """The cache with its files, written in a thread."""

    def __init__(self, state: Path, run: Path) -> None:
        super().__init__()
        self._objects, self._secrets, self._mark = state / "objects", run / "secrets", run / "objects-settled"
        self.settled = False

    async def restore(self) -> None:
        self.apply(await asyncio.to_thread(self._read_all), complete=True)
        self.settled = self._mark.exists()

    async def settle(self) -> bool:
        await asyncio.to_thread(self._settle)
        return await super().settle()

    def _settle(self) -> None:
        """The mark goes with the boot, as the Secrets do."""
        try:
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch(0o600)
        except OSError as fault:
            log.warning("%s cannot be written: the next agent waits for the master: %s", self._mark, fault)

    async def keep(self, changed: Collection[Reference]) -> None:
        bodies = {key: body_of(self.table[key]) if key in self.table else None for key in changed}
        await asyncio.to_thread(self._write_all, bodies)

    def _folder(self, key: Reference) -> Path:
        return self._secrets if key.kind == SECRET else self._objects

    def _path(self, key: Reference) -> Path:
        text = "\0".join((key.kind, key.namespace, key.name))
        return self._folder(key) / hashlib.sha256(text.encode()).hexdigest()

    def _read_all(self) -> list[Referred]:
        found = []
        for folder in (self._objects, self._secrets):
            try:
                paths = sorted(folder.iterdir())
            except FileNotFoundError:
                continue
            except OSError as fault:
                raise StateFault(f"{folder} cannot be listed: {fault}") from fault
            for path in paths:
                obj = None if path.name.endswith(HALF) else _read(path)
                if obj is None or self._path(reference_of(obj)) != path:
                    path.unlink(missing_ok=True)
                    self._unsettle(path)
                else:
                    found.append(obj)
        return found

    def _unsettle(self, damaged: Path) -> None:
        """Half a file is one that never counted."""
        if not damaged.name.endswith(HALF):
            self._mark.unlink(missing_ok=True)

    def _write_all(self, bodies: dict[Reference, bytes | None]) -> None:
        """Removals first: they may make the room. Raises StateFault with the first fault, after all were tried."""
        faults = []
        for key, body in sorted(bodies.items(), key=lambda item: item[1] is not None):
            try:
                self._write(key, body)
            except OSError as fault:
                faults.append(f"{key.kind} {key.namespace}/{key.name} could not be saved: {fault.strerror or fault}")
        self._let_go_of_memory()
        if faults:
            self._mark.unlink(missing_ok=True)
            raise StateFault(faults[0])

    def _write(self, key: Reference, body: bytes | None) -> None:
        path = self._path(key)
        if body is None:
            path.unlink(missing_ok=True)
            return
        if key.kind == SECRET:
            ensure_memory(str(self._secrets), SECRETS_BYTES, 0o700)
        self._folder(key).mkdir(0o700, parents=True, exist_ok=True)
        half = path.with_suffix(HALF)
        try:
            with open(half, "wb", opener=_private) as file:
                file.write(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        except OSError:
            half.unlink(missing_ok=True)
            raise

    def _let_go_of_memory(self) -> None:
        if self._secrets.is_dir() and not any(self._secrets.iterdir()):
            unmount_below(str(self._secrets))
            self._secrets.rmdir()


def _read(path: Path) -> Referred | None:
    """None when it is damaged: the next COMPLETE brings it again."""
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        if first != MAGIC + hashlib.sha256(body).hexdigest().encode():
            raise ValueError("its checksum does not match: it was cut short or changed")
        return object_of(s.AssignedObject.FromString(body))
    except (OSError, ValueError, DecodeError) as fault:
        log.error("%s is damaged (%s) and is dropped; the master sends the object again", path, fault)
        return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
