"""A container's file system: a plan of steps that can describe themselves, run by the child in its own mount namespace.

Everything inside the image is opened with openat2(2) below the root's descriptor and mounted by descriptor; no path of
the image is ever followed on the host. See mount_setattr(2), fsopen(2), pivot_root(2) and the kernel's page on
overlayfs. Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from shoal.agent.runtime import syscalls
from shoal.agent.runtime.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)

IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
STRICT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
LOCKED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
MAX_LAYERS = 500  # overlayfs' own limit; 500 short names still fit mount(2)'s page of options
SHM_BYTES = 64 << 20
TERMINATION = "termination"  # below a run's work folder: what the container says at its end
# Redirects and metacopies in an image's layers would be followed by name: off. Volatile: no instance outlives a boot.
OVERLAY_OPTIONS = b"volatile,redirect_dir=nofollow,metacopy=off,index=off"
NULL_DEVICE = (1, 3)
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MASKED = {
    "proc": (
        "acpi asound interrupts kcore keys kpagecount kpageflags latency_stats sched_debug scsi timer_list timer_stats"
    ),
    "sys": "firmware devices/virtual/powercap",
}
READ_ONLY = {"proc": "bus fs irq sys sysrq-trigger"}


class Context:
    """Descriptors that the steps hand on: the root, mounts by name, opened sources by target, the working folder."""

    __slots__ = ("cwd", "mounts", "root", "sources")

    def __init__(self) -> None:
        self.root = -1
        self.cwd = -1
        self.mounts: dict[str, int] = {}
        self.sources: dict[str, int] = {}


class Step:
    """One change; `describe` completes "cannot ..."."""

    def describe(self) -> str:
        raise NotImplementedError

    def run(self, context: Context) -> None:
        raise NotImplementedError


class Detach(Step):
    """Cuts the tree off from the host's: nothing mounted here shows there."""

    def describe(self) -> str:
        return "make the mount namespace private"

    def run(self, context: Context) -> None:
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


class Overlay(Step):
    """Mounts `layers` links of `work` with its fresh upper folder; all names are short and relative to `work`."""

    def __init__(self, work: str, layers: int, *, devices: bool = False) -> None:
        self.work = work
        self.layers = layers
        self.flags = 0 if devices else syscalls.MS_NODEV

    def options(self) -> bytes:
        """overlayfs wants the topmost layer first."""
        lower = b":".join(b"l/%d" % number for number in reversed(range(self.layers)))
        return b"lowerdir=" + lower + b",upperdir=upper,workdir=work," + OVERLAY_OPTIONS

    def describe(self) -> str:
        return f"mount the image's {self.layers} layers on {self.work}"

    def run(self, context: Context) -> None:
        os.chdir(self.work)
        syscalls.mount(b"overlay", b"merged", b"overlay", self.flags, self.options())
        context.root = syscalls.openat2(
            syscalls.AT_FDCWD, b"merged", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, RESOLVE_BENEATH
        )


class Fresh(Step):
    """Mounts a new file system on a folder of the root (`parent` "") or of another mount; no symbolic links."""

    def __init__(self, name: str, fstype: str, path: str, options: Mapping[str, str], attributes: int) -> None:
        self.name = name
        self.fstype = os.fsencode(fstype)
        self.path = os.fsencode(path)
        self.options = {os.fsencode(key): os.fsencode(value) for key, value in options.items()}
        self.attributes = attributes

    def describe(self) -> str:
        return f"mount {os.fsdecode(self.fstype)} on /{os.fsdecode(self.path)} (a symbolic link there is refused)"

    def run(self, context: Context) -> None:
        target = make_folder(context.root, self.path, STRICT)
        mount = syscalls.new_mount(self.fstype, self.options, self.attributes)
        syscalls.move_mount(mount, target)
        os.close(target)
        context.mounts[self.name] = mount


class Devices(Step):
    """Fills the new /dev with the harmless devices, the usual links and the folders of further mounts."""

    def describe(self) -> str:
        return "make the devices in /dev"

    def run(self, context: Context) -> None:
        dev = context.mounts["dev"]
        for name, (major, minor) in DEVICES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
        for name, target in LINKS.items():
            os.symlink(target, name, dir_fd=dev)


class HostDevices(Step):
    """The node's own devices beside them: (path below /dev, mode, device number), parents before children."""

    def __init__(self, devices: Sequence[tuple[str, int, int]]) -> None:
        self.devices = devices

    def describe(self) -> str:
        return "make the node's devices in /dev"

    def run(self, context: Context) -> None:
        dev = context.mounts["dev"]
        for path, mode, number in self.devices:
            try:
                if stat.S_ISDIR(mode):
                    os.mkdir(path, mode & 0o777, dir_fd=dev)
                else:
                    os.mknod(path, mode, number, dir_fd=dev)
            except FileExistsError:
                pass  # one of the harmless ones


class CgroupView(Step):
    """Shows the container its own cgroup of one hierarchy, read-only unless told otherwise."""

    def __init__(self, name: str, folder: str, attributes: int) -> None:
        self.name = name
        self.folder = os.fsencode(folder)
        self.attributes = attributes

    def describe(self) -> str:
        return f"show {os.fsdecode(self.folder)} below /sys/fs/cgroup"

    def run(self, context: Context) -> None:
        mount = syscalls.open_tree(syscalls.AT_FDCWD, self.folder, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(mount, self.attributes)
        path = b"sys/fs/cgroup/" + os.fsencode(self.name)
        target = make_folder(context.root, path.rstrip(b"/"), STRICT)
        syscalls.move_mount(mount, target)
        os.close(target)
        os.close(mount)


class Cover(Step):
    """Hides a path of a mount: folders under an empty read-only tmpfs, files under our own null device."""

    def __init__(self, mount: str, path: str) -> None:
        self.mount = mount
        self.path = path

    def describe(self) -> str:
        return f"cover /{self.mount}/{self.path}"

    def run(self, context: Context) -> None:
        target = open_existing(context.mounts[self.mount], os.fsencode(self.path))
        if target < 0:
            return
        if stat.S_ISDIR(os.fstat(target).st_mode):
            cover = syscalls.new_mount(b"tmpfs", {b"size": b"0", b"mode": b"555"}, MOUNT_ATTR_RDONLY | LOCKED)
        else:
            cover = syscalls.open_tree(context.mounts["dev"], b"null", syscalls.OPEN_TREE_CLONE)
            syscalls.mount_setattr(cover, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        syscalls.move_mount(cover, target)
        os.close(cover)
        os.close(target)


class Protect(Step):
    """Makes a path of a mount read-only, by a copy of it over itself."""

    def __init__(self, mount: str, path: str) -> None:
        self.mount = mount
        self.path = path

    def describe(self) -> str:
        return f"make /{self.mount}/{self.path} read-only"

    def run(self, context: Context) -> None:
        target = open_existing(context.mounts[self.mount], os.fsencode(self.path))
        if target < 0:
            return
        copy = syscalls.open_tree(target, b"", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
        syscalls.mount_setattr(copy, MOUNT_ATTR_RDONLY | LOCKED)
        syscalls.move_mount(copy, target)
        os.close(copy)
        os.close(target)


class Freeze(Step):
    """Makes a whole mount read-only once it has been filled; "" is the root."""

    def __init__(self, mount: str) -> None:
        self.mount = mount

    def describe(self) -> str:
        return f"make /{self.mount} read-only"

    def run(self, context: Context) -> None:
        syscalls.mount_setattr(context.mounts[self.mount] if self.mount else context.root, MOUNT_ATTR_RDONLY)


class File(Step):
    """Binds a managed file over a path of the image. Links are followed inside the root; a dangling one is replaced.
    A read-only volume that lacks the file stays as it is."""

    def __init__(self, source: str, path: str, attributes: int) -> None:
        self.source = os.fsencode(source)
        self.path = os.fsencode(path)
        self.attributes = attributes

    def describe(self) -> str:
        return f"bind the managed file /{os.fsdecode(self.path)}"

    def run(self, context: Context) -> None:
        copy = syscalls.open_tree(syscalls.AT_FDCWD, self.source, syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(copy, self.attributes)
        try:
            target = make_file(context.root, self.path)
        except OSError as error:
            if error.errno == errno.EROFS:
                return
            raise
        syscalls.move_mount(copy, target)
        os.close(target)
        os.close(copy)


class WorkingFolder(Step):
    """Opens the working folder inside the root, and makes it if the image lacks it."""

    def __init__(self, path: str) -> None:
        self.path = os.fsencode(path)

    def describe(self) -> str:
        return f"open the working directory /{os.fsdecode(self.path)}"

    def run(self, context: Context) -> None:
        context.cwd = make_folder(context.root, self.path or b".", IN_ROOT)


class Enter(Step):
    """Makes the new root the root and lets go of the host's tree."""

    def describe(self) -> str:
        return "enter the new root"

    def run(self, context: Context) -> None:
        os.fchdir(context.root)
        syscalls.pivot_root(b".", b".")
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        os.chdir("/")


class Plan:
    """What a container's file system is made of. `files` are (file below `work`, path in the container)."""

    def __init__(self, *, work: str, layers: int, cwd: str) -> None:
        self.work, self.layers, self.cwd = work, layers, cwd
        self.files: Sequence[tuple[str, str]] = ()
        self.read_only_root = False
        self.cgroup_views: Sequence[tuple[str, str]] = ()
        self.sources: Sequence[Step] = ()  # open what lies on the node, before anything else
        self.attached: Sequence[Step] = ()  # put it into the container
        self.termination = ""  # where the file `TERMINATION` below `work` is bound
        self.pod_shm = False  # a source brings /dev/shm
        self.host_devices: Sequence[tuple[str, int, int]] | None = None  # None: an ordinary container

    def steps(self) -> list[Step]:
        """All steps but Enter."""
        privileged = self.host_devices is not None
        plan = [*self.sources, Detach(), Overlay(self.work, self.layers, devices=privileged)]
        plan += self._kernel_file_systems(privileged)
        if not privileged:
            plan += [Cover(mount, path) for mount, paths in MASKED.items() for path in paths.split()]
            plan += [Protect(mount, path) for mount, paths in READ_ONLY.items() for path in paths.split()]
        plan += self.attached
        attributes = LOCKED | (MOUNT_ATTR_RDONLY if self.read_only_root else 0)
        plan += [File(source, path.strip("/"), attributes) for source, path in self.files]
        if self.termination:
            plan.append(File(TERMINATION, self.termination.strip("/"), LOCKED))
        plan.append(WorkingFolder(self.cwd.strip("/")))
        if self.read_only_root:
            plan.append(Freeze(""))
        return plan

    def _kernel_file_systems(self, privileged: bool) -> list[Step]:
        """/proc, /dev with what lies in it, and /sys with the container's own cgroups."""
        quiet = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
        system = LOCKED | (0 if privileged else MOUNT_ATTR_RDONLY)
        terminals = {"newinstance": "", "ptmxmode": "0666", "mode": "0620", "gid": "5"}
        plan: list[Step] = [
            Fresh("proc", "proc", "proc", {}, LOCKED),
            Fresh("dev", "tmpfs", "dev", {"mode": "755", "size": "64k"}, quiet),
            Devices(),
            *([HostDevices(self.host_devices)] if self.host_devices else []),
            Fresh("pts", "devpts", "dev/pts", terminals, quiet),
            Fresh("mqueue", "mqueue", "dev/mqueue", {}, LOCKED),
            Fresh("sys", "sysfs", "sys", {}, system),
        ]
        if not self.pod_shm:
            plan.append(Fresh("shm", "tmpfs", "dev/shm", {"mode": "1777", "size": str(SHM_BYTES)}, LOCKED))
        split = any(name for name, _ in self.cgroup_views)
        if split:
            plan.append(Fresh("sys/fs/cgroup", "tmpfs", "sys/fs/cgroup", {"mode": "755", "size": "64k"}, LOCKED))
        plan += [CgroupView(name, folder, system) for name, folder in self.cgroup_views]
        if split and not privileged:
            plan.append(Freeze("sys/fs/cgroup"))
        return plan


def open_existing(fd: int, path: bytes) -> int:
    """A descriptor of a path of one of our own mounts, or -1 when this kernel lacks it."""
    try:
        return syscalls.openat2(fd, path, os.O_PATH | os.O_NOFOLLOW, STRICT | syscalls.RESOLVE_NO_XDEV)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        if error.errno == errno.EXDEV:  # something of ours covers it already
            return -1
        raise


def make_folder(root: int, path: bytes, resolve: int, mode: int = 0o755) -> int:
    """A descriptor of the folder, made with its parents where missing. Raises OSError."""
    try:
        return syscalls.openat2(root, path, os.O_PATH | os.O_DIRECTORY, resolve)
    except FileNotFoundError:
        parent, _, name = path.rpartition(b"/")
        if not name:
            raise
    above = make_folder(root, parent or b".", resolve, mode)
    try:
        os.mkdir(name, mode, dir_fd=above)
    except FileExistsError:
        pass  # a dangling link: the next look says so
    finally:
        os.close(above)
    return syscalls.openat2(root, path, os.O_PATH | os.O_DIRECTORY, resolve)


def make_file(root: int, path: bytes) -> int:
    """A descriptor of the file to bind over, made empty where missing; a dangling link is replaced."""
    try:
        return syscalls.openat2(root, path, os.O_PATH, IN_ROOT)
    except FileNotFoundError:
        parent, _, name = path.rpartition(b"/")
    above = make_folder(root, parent or b".", IN_ROOT)
    try:
        try:
            os.unlink(name, dir_fd=above)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        os.close(syscalls.openat2(above, name, flags, STRICT, 0o644))
        return syscalls.openat2(above, name, os.O_PATH | os.O_NOFOLLOW, STRICT)
    finally:
        os.close(above)


def open_null(dev: int) -> int:
    """The container's own null device below its /dev, checked by its number. Raises OSError(ENODEV)."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY
    fd = syscalls.openat2(dev, b"null", flags, STRICT)
    if not is_null(fd):
        os.close(fd)
        raise OSError(errno.ENODEV, "/dev/null of the container is not the null device")
    return fd


def is_null(fd: int) -> bool:
    """Whether a descriptor is the null device, whoever's file it is."""
    status = os.fstat(fd)
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return stat.S_ISCHR(status.st_mode) and device == NULL_DEVICE
