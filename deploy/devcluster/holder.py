"""PID 1 of a development node: holds its namespaces, makes it look like a machine, and reaps.

Run by file path with the standard library only: holder.py HOSTNAME BOOT_ID. It prints its pid (as the caller sees it),
waits for a line on stdin (the caller has plugged in the cable and filled the cgroup), then prints "ready".
Killing it kills the whole node; that is what "power off" means.
"""

import ctypes
import os
import signal
import sys
import tempfile

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
BOOT_ID = "/proc/sys/kernel/random/boot_id"
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    """A libc call by name; errno becomes an OSError."""
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def furnish(hostname: str, boot_id: str) -> None:
    """Mounts and names that make the namespaces a machine of their own; nothing of it reaches the host."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    name = hostname.encode()
    call("sethostname", name, ctypes.c_size_t(len(name)))
    with tempfile.NamedTemporaryFile("w", dir="/run", prefix="boot_id", delete=False) as file:
        file.write(boot_id + "\n")
    os.chmod(file.name, 0o444)
    mount(file.name, BOOT_ID, "", MS_BIND)


def reap() -> None:
    """Waits for whatever falls to PID 1, for ever."""
    while True:
        try:
            signal.sigwait({signal.SIGCHLD})
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


def main() -> None:
    hostname, boot_id = sys.argv[1:3]
    call("unshare", CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if not sys.stdin.readline():
        os._exit(1)  # the caller died before the node was complete
    furnish(hostname, boot_id)
    print("ready", flush=True)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    reap()


if __name__ == "__main__":
    main()
