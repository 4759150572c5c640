"""Volumes of files (configMap, secret, downwardAPI, projected), replaced together and atomically.

    <volume>/..data -> ..1700000000.1      the link that a change renames into place
    <volume>/..1700000000.1/               the files of one generation
    <volume>/app.conf -> ..data/app.conf   what containers open

The kubelet's AtomicWriter: a process that reads two files sees both old or both new when it opens `..data` first. Each
step may be the last before a crash; the next call carries on from whatever it finds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Set

from shoal.agent.runtime.trees import delete_tree
from shoal.agent.volumes.port import File

DATA, NEW_DATA = "..data", "..data.new"
GENERATION = ".."
FOLDER_MODE = 0o755
GROUP_READ, GROUP_ENTER = 0o440, 0o2550  # what fsGroup adds (the kubelet's roMask): nobody writes to these volumes


def write_files(root: str, files: Mapping[str, File], gid: int | None = None) -> bool:
    """Makes the folder `root` hold exactly these; says whether anything had to change. `gid` owns them. Raises
    OSError."""
    wanted = {path: _owned(file, gid) for path, file in files.items()}
    current = _current(root)
    changed = current is None or _read(f"{root}/{current}", wanted) is False
    if changed:
        _sweep(root, current or "")  # what a full disk has stopped half-way does not pile up
        current = _write_generation(root, wanted, gid)
        _point(root, current)
    assert current is not None
    _show(root, {path.partition("/")[0] for path in wanted})
    _sweep(root, current)
    return changed


def _owned(file: File, gid: int | None) -> File:
    return file if gid is None else File(file.content, file.mode | GROUP_READ)


def _current(root: str) -> str | None:
    """The generation that `..data` leads to, when it is there."""
    try:
        name = os.readlink(f"{root}/{DATA}")
    except OSError:
        return None
    return name if _is_generation(name) and os.path.isdir(f"{root}/{name}") else None


def _is_generation(name: str) -> bool:
    return name.startswith(GENERATION) and name not in ("..", DATA, NEW_DATA) and "/" not in name


def _read(folder: str, wanted: Mapping[str, File]) -> bool:
    """Whether the generation holds exactly what is wanted."""
    found: Set[str] = set()
    for place, _, names in os.walk(folder):
        found |= {os.path.relpath(f"{place}/{name}", folder) for name in names}
    return found == wanted.keys() and all(_same(f"{folder}/{path}", file) for path, file in wanted.items())


def _same(path: str, file: File) -> bool:
    try:
        with open(path, "rb", opener=_no_links) as opened:
            status = os.fstat(opened.fileno())
            if stat.S_IMODE(status.st_mode) != file.mode or status.st_size != len(file.content):
                return False
            return opened.read() == file.content
    except OSError:
        return False


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _write_generation(root: str, files: Mapping[str, File], gid: int | None) -> str:
    name = _make_generation(root)
    folder = f"{root}/{name}"
    for inner in sorted({part for path in files for part in _folders(path)}, key=len):
        os.mkdir(f"{folder}/{inner}")
    for path, file in files.items():
        fd = os.open(f"{folder}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as opened:
            opened.write(file.content)
            opened.flush()
            if gid is not None:
                os.fchown(fd, -1, gid)
            os.fchmod(fd, file.mode)
    for place, _, _ in os.walk(folder):
        own_folder(place, gid)
    own_folder(root, gid)
    return name


def own_folder(path: str, gid: int | None) -> None:
    if gid is not None:
        os.chown(path, -1, gid)
    os.chmod(path, FOLDER_MODE | (GROUP_ENTER if gid is not None else 0))


def _make_generation(root: str) -> str:
    """A new folder, numbered after the highest there is: no clock is asked, that could go back."""
    numbers = [int(name[2:]) for name in os.listdir(root) if _is_generation(name) and name[2:].isdecimal()]
    name = f"{GENERATION}{max(numbers, default=0) + 1}"
    os.mkdir(f"{root}/{name}", 0o700)
    return name


def _folders(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _point(root: str, generation: str) -> None:
    """From here on every new open finds the new files."""
    fresh = f"{root}/{NEW_DATA}"
    _remove(fresh)
    os.symlink(generation, fresh)
    os.rename(fresh, f"{root}/{DATA}")


def _show(root: str, tops: Set[str]) -> None:
    """A link for every file or folder at the top, and none for what is gone."""
    for name in tops:
        target = f"{DATA}/{name}"
        try:
            if os.readlink(f"{root}/{name}") == target:
                continue
        except OSError:
            pass
        _remove(f"{root}/{name}")
        os.symlink(target, f"{root}/{name}")
    for name in os.listdir(root):
        if name not in tops and not name.startswith(GENERATION):
            _remove(f"{root}/{name}")


def _sweep(root: str, current: str) -> None:
    """Older generations, and those that were never finished."""
    for name in os.listdir(root):
        if (_is_generation(name) and name != current) or name == NEW_DATA:
            _remove(f"{root}/{name}")


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        delete_tree(path)
