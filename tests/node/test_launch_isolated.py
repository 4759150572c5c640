"""The launch from an isolated interpreter that runs from a sealed memfd copy, as the spawner does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal.agent.runtime.launch
from tests.node.launching import TIMEOUT_S, Host, needs_root, profile, script

pytestmark = [pytest.mark.root, needs_root]
RUNTIME = Path(shoal.agent.runtime.launch.__file__).resolve().parent
DRIVER = Path(__file__).with_name("launch_driver.py")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


def command(host: Host, *argv: str, times: int = 1, **fields: Any) -> list[str]:
    """The driver's command line for one request."""
    request = {
        "spec": host.spec(*argv, **fields),
        "sandbox": host.sandbox,
        "base": host.cgroups.base,
        "work": str(host.folder / "driven"),
        "seccomp": profile().hex(),
        "times": times,
    }
    path = host.folder / "request.json"
    path.write_text(json.dumps(request))
    return [sys.executable, "-S", "-E", "-I", str(DRIVER), str(RUNTIME), str(path)]


def drive(host: Host, *argv: str, times: int = 1, **fields: Any) -> dict[str, Any]:
    """The driver's answer."""
    line = command(host, *argv, times=times, **fields)
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_runs_with_the_standard_library_alone(host: Host) -> None:
    answer = drive(host, "sh", "-c", "exit 5")
    assert answer["code"] == 5
    assert answer["modules"] == []


def test_an_entrypoint_that_names_the_interpreter_does_not_start_it(host: Host) -> None:
    """`#!/proc/self/exe` would run whatever performs execve, the runtime's own interpreter (CVE-2019-5736)."""
    script(host.root, "entry", "#!/proc/self/exe\n")
    answer = drive(host, "/entry")
    assert answer["error"][0] == "ContainerCannotRun"
    assert answer["error"][2] == 126
    answer = drive(host, "/proc/self/exe")
    assert answer["error"][2] == 126


def test_many_starts_in_a_row(host: Host) -> None:
    answer = drive(host, "true", times=30, limits={"memory_bytes": 64 << 20, "pids": 20, "cpu_quota_us": 50_000})
    assert (len(answer["times"]), answer["code"]) == (30, 0)


@pytest.mark.parametrize("milliseconds", range(12))
def test_the_launcher_may_die_at_any_moment(host: Host, milliseconds: int) -> None:
    """What is left is the user's command, running, or nothing: never a half-made child."""
    line = command(host, "sleep", "60")
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        time.sleep(milliseconds / 1000)  # where in the start this falls is left to chance
        driver.kill()
    path = host.cgroups.container_path("pod-1", "main", 0)
    deadline = time.monotonic() + TIMEOUT_S
    while not all(is_command(pid) for pid in host.cgroups.pids(path)):
        assert time.monotonic() < deadline, "the child neither started the command nor ended"
        time.sleep(0.001)


def is_command(pid: int) -> bool:
    """Whether the process runs the image's program (or is gone)."""
    try:
        return os.readlink(f"/proc/{pid}/exe").endswith("/bin/busybox")
    except FileNotFoundError:
        return True
