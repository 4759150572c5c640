"""Image archives as `shoal image load` sends them: a file, the standard input, or an OCI layout's folder as a tar."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 64 * 1024  # bytes of one message
TAR_BLOCK = 512
LAYOUT_FILES = ("oci-layout", "index.json")


class CannotRead(Exception):
    """The archive cannot be sent; the message says why."""


def chunks(path: Path) -> Iterator[bytes]:
    """An archive's bytes, or a folder's with an OCI layout as a tar, never more than a chunk in memory."""
    try:
        if path.is_dir():
            yield from _layout(path)
            return
        with path.open("rb") as file:
            yield from stream(file)
    except OSError as error:
        raise CannotRead(f"{error.filename or path} cannot be read: {error.strerror}") from error


def stream(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


def _layout(folder: Path) -> Iterator[bytes]:
    for name in LAYOUT_FILES:
        if not (folder / name).is_file():
            raise CannotRead(f"{folder} is no OCI layout: {name} is missing in it")
    for path in (*(folder / name for name in LAYOUT_FILES), *sorted((folder / "blobs").rglob("*"))):
        if path.is_file():
            yield from _member(path, str(path.relative_to(folder)))
    yield bytes(2 * TAR_BLOCK)


def _member(path: Path, name: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        info = tarfile.TarInfo(name)
        info.size = left = os.fstat(file.fileno()).st_size
        yield info.tobuf(tarfile.PAX_FORMAT)
        while left:
            data = file.read(min(CHUNK, left))
            if not data:
                raise CannotRead(f"{path} became shorter while it was read")
            left -= len(data)
            yield data
        yield bytes(-info.size % TAR_BLOCK)
