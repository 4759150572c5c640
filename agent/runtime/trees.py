"""Deletes folders whose contents a container chose. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import islice

BATCH = 1000  # entries
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def delete_tree(path: str) -> bool:
    """Deletes a folder with all that is in it, by descriptors, following nothing; says whether it is gone.

    However deep a tree is, no recursion and no long path is needed: what lies two levels down is moved to the top.
    However many entries a folder has, a few of them are in memory.
    """
    try:
        top = os.open(path, FOLDER_FLAGS)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        count = 0
        stuck: set[str] = set()
        while len(stuck) < BATCH and (names := _some(top, stuck)):
            for name, _ in names:
                count += 1
                if not _delete_entry(top, name, f".gone-{os.getpid()}-{count}-"):
                    stuck.add(name)
    finally:
        os.close(top)
    return _remove_folder(path, None)


def _delete_entry(top: int, name: str, prefix: str) -> bool:
    """Deletes one entry of the top folder; filled folders inside it become entries of the top, with `prefix`."""
    try:
        inner = os.open(name, FOLDER_FLAGS, dir_fd=top)
    except NotADirectoryError:
        return _unlink(name, top)
    except OSError as error:
        return isinstance(error, FileNotFoundError) or _unlink(name, top)  # a link is ELOOP
    try:
        moved, gone = 0, 1
        while gone and (entries := _some(inner)):
            gone = 0
            for entry, is_folder in entries:
                if not is_folder:
                    gone += _unlink(entry, inner)
                    continue
                if not _remove_folder(entry, inner):
                    moved += 1
                    os.rename(entry, f"{prefix}{moved}", src_dir_fd=inner, dst_dir_fd=top)
                gone += 1
    except OSError:
        pass  # what stays shows in the removal below
    finally:
        os.close(inner)
    return _remove_folder(name, top)


def _some(folder: int, but: Collection[str] = ()) -> list[tuple[str, bool]]:
    """The next entries and whether each is a folder: a container may have made millions."""
    with os.scandir(folder) as entries:
        wanted = (entry for entry in entries if entry.name not in but)
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(wanted, BATCH)]


def _unlink(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _remove_folder(name: str, folder: int | None) -> bool:
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
