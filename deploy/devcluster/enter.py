"""Runs a program inside a development node: enter.py HOLDER_PID CGROUP_PROCS,... -- PROGRAM ARGS.

Joins the cgroups first, then the holder's namespaces, forks (a pid namespace takes effect for children only), prints
the child's pid as the host sees it, and ends. Standard library only.
"""

import ctypes
import os
import sys

NAMESPACES = ("mnt", "uts", "ipc", "net", "pid")
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    holder, cgroups, dash, *program = sys.argv[1:]
    assert dash == "--" and program
    for path in filter(None, cgroups.split(",")):
        with open(path, "w") as file:
            file.write("0")
    descriptors = [os.open(f"/proc/{holder}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
    for descriptor in descriptors:
        if libc.setns(descriptor, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # stdout carried the pid; the program's own output goes where its errors go
    os.closerange(3, 256)
    os.chdir("/")
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
