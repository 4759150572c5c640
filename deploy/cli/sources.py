"""Where manifests come from: files, folders and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from shoal.deploy.cli.failures import CommandError
from shoal.proto.manifest import Parsed, parse
from shoal.proto.yamltree import MAX_BYTES

SUFFIXES = (".yaml", ".yml", ".json")


def read_manifests(names: Sequence[str], *, recursive: bool, check: bool = True) -> Parsed:
    """Everything that the files, folders and "-" hold, with all errors of all of them. Raises CommandError."""
    together = Parsed()
    for path in _files(names, recursive):
        parsed = _read(path, check)
        together.objects.extend(parsed.objects)
        together.errors.extend(parsed.errors)
        together.unsupported.extend(parsed.unsupported)
    return together


def _files(names: Sequence[str], recursive: bool) -> Iterator[str]:
    for name in names:
        if name == "-":
            yield name
        elif "://" in name:
            raise CommandError(f"{name}: addresses are not fetched: download it and give the file")
        elif Path(name).is_dir():
            inside = Path(name).rglob("*") if recursive else Path(name).glob("*")
            found = sorted(path for path in inside if path.suffix in SUFFIXES and path.is_file())
            if not found:
                deeper = "" if recursive else " (with -R its folders are read too)"
                raise CommandError(f"{name}: the folder holds no {', '.join(SUFFIXES)} file{deeper}")
            yield from map(str, found)
        else:
            yield name


def _read(name: str, check: bool) -> Parsed:
    source = "<stdin>" if name == "-" else name
    try:
        if name == "-":
            text = _bounded(sys.stdin.buffer)
        else:
            with open(name, "rb") as file:
                text = _bounded(file)
    except OSError as error:
        raise CommandError(f"cannot read {source}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CommandError(f"{source}:{line}: is not UTF-8 text: save it as UTF-8") from None
    return parse(text, source, check=check)


def _bounded(file: BinaryIO) -> str:
    """The text; one byte more than allowed is enough for the parser to refuse it."""
    data = file.read(MAX_BYTES + 1)
    return data.decode() if len(data) <= MAX_BYTES else " " * (MAX_BYTES + 1)
