"""Launches one container from an interpreter like the spawner's: isolated, run from a sealed memfd copy of itself.

Usage: python -S -E -I launch_driver.py RUNTIME_FOLDER REQUEST.json; prints "ready", then a JSON line with the outcome.
With "times" above 1 the container is launched that often; the answer holds the seconds from start to exit.
"""

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

MFD_ALLOW_SEALING = 2
F_ADD_SEALS = 1033
SEALS_ALL = 15


def reexecute_from_memfd() -> None:
    """Replaces this process by a sealed copy of its interpreter, unless it is one already."""
    if os.readlink("/proc/self/exe").startswith("/memfd:"):
        return
    import fcntl

    fd = os.memfd_create("interpreter", MFD_ALLOW_SEALING)
    with open("/proc/self/exe", "rb") as source:
        os.sendfile(fd, source.fileno(), 0, os.fstat(source.fileno()).st_size)
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS_ALL)
    os.set_inheritable(fd, False)
    os.execve(fd, [sys.executable, "-S", "-E", "-I", *sys.argv], {})


def main() -> None:
    reexecute_from_memfd()
    sys.path.insert(0, sys.argv[1])
    import_module("boot").make_packages(sys.argv[1])
    from shoal.agent.runtime import cgroups, launch

    with open(sys.argv[2]) as file:
        request = json.load(file)
    groups = cgroups.open_cgroups(request["base"])
    null = os.open("/dev/null", os.O_RDWR)
    answer: dict[str, Any] = {
        "times": [],
        "modules": sorted(name for name in sys.modules if "site" in name or "grpc" in name),
    }
    print("ready", flush=True)
    for number in range(request["times"]):
        spec = request["spec"]
        spec["id"]["attempt"] = number
        begin = time.perf_counter()
        try:
            run = launch.launch(
                spec,
                sandbox=request["sandbox"],
                cgroups=groups,
                work=f"{request['work']}-{number}",
                stdin=null,
                stdout=null,
                stderr=null,
                seccomp_bpf=bytes.fromhex(request["seccomp"]),
            )
        except launch.LaunchError as error:
            answer["error"] = [error.reason, error.message, error.exit_code]
            break
        _, status = os.waitpid(run.pid, 0)
        answer["times"].append(time.perf_counter() - begin)
        answer["code"] = os.waitstatus_to_exitcode(status)
        os.close(run.pidfd)
        groups.remove(launch.container_cgroup(spec, groups))
        launch.cleanup(f"{request['work']}-{number}")
    print(json.dumps(answer))


main()
