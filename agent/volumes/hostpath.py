"""hostPath: a path of the node itself, of the type that the manifest says (Kubernetes' HostPathType)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from shoal.agent.volumes.port import HostPath, VolumeFault

FOLDER_MODE, FILE_MODE = 0o755, 0o644
CHECKS: Mapping[str, tuple[Callable[[int], bool], str]] = {
    "Directory": (stat.S_ISDIR, "a folder"),
    "DirectoryOrCreate": (stat.S_ISDIR, "a folder"),
    "File": (stat.S_ISREG, "a regular file"),
    "FileOrCreate": (stat.S_ISREG, "a regular file"),
    "Socket": (stat.S_ISSOCK, "a socket"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}
MAKES_FOLDER = ("", "DirectoryOrCreate")  # the container runtimes make a missing folder for ""


def check_host_path(source: HostPath) -> tuple[str, bool]:
    """The path without links, and whether it is no folder. Raises VolumeFault, OSError."""
    path = source.path
    if not path.startswith("/") or "\0" in path:
        raise VolumeFault(f"hostPath {path!r} is not an absolute path", retryable=False)
    if source.type and source.type not in CHECKS:
        raise VolumeFault(f"hostPath {path}: there is no type {source.type!r}", retryable=False)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = _make(path, source.type)
    is_right, what = CHECKS.get(source.type, (lambda _: True, ""))
    if not is_right(mode):
        raise VolumeFault(f"hostPath {path} has type {source.type}, but on this node it is not {what}")
    return os.path.realpath(path), not stat.S_ISDIR(mode)


def _make(path: str, kind: str) -> int:
    """Its mode, once it has been made."""
    if kind in MAKES_FOLDER:
        _make_folders(path)
    elif kind == "FileOrCreate":
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            os.fchmod(fd, FILE_MODE)
            os.close(fd)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise VolumeFault(f"hostPath {path} cannot be made: its folder is not on this node") from error
    else:
        raise VolumeFault(f"hostPath {path} has type {kind}, but there is nothing at that path on this node")
    return os.stat(path).st_mode


def _make_folders(path: str) -> None:
    """Mode 0755 whatever the umask."""
    parent = os.path.dirname(path.rstrip("/"))
    if not os.path.isdir(parent):
        _make_folders(parent)
    try:
        os.mkdir(path, FOLDER_MODE)
    except FileExistsError:
        return
    os.chmod(path, FOLDER_MODE)
