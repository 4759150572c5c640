"""Pids are used again: an end that the spawner has waited for is never taken for that of a later process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.agent.runtime import records, wire
from shoal.agent.runtime.settings import Settings
from shoal.agent.runtime.spawner import Pod, Spawner

UID = "pod-1"


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Spawner]:
    settings = Settings(str(tmp_path / "run"), str(tmp_path / "data"), f"shoal-test-{os.getpid()}-pids")
    settings.make_folders()
    listener = wire.listen(f"{settings.run}/spawner.sock")
    spawner = Spawner(settings, listener, -1)
    yield spawner
    spawner.poller.close()
    listener.close()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def keep(spawner: Spawner, pod: Pod, pid: int) -> Path:
    """What a supervisor sends once its container runs; where the container's end would be recorded."""
    folder = Path(records.run_folder(spawner.settings.data, UID, "main", 0))
    folder.mkdir(parents=True)
    message = {"event": "keep", "key": "run/main/0", "fds": ["pidfd"], "facts": {"pid": pid, "run": ["main", 0]}}
    spawner._on_event(pod, message, [os.pidfd_open(pid)])
    return folder / "exit.json"


def test_a_living_container_with_a_used_pid_has_not_ended(spawner: Spawner, process: subprocess.Popen[bytes]) -> None:
    pod = spawner.pods[UID] = Pod(UID)
    spawner._on_child(process.pid, 0)  # an earlier process of that pid, which nobody had named
    assert not keep(spawner, pod, process.pid).exists()
    assert spawner.orphans == {}
    pod.kept["run/main/0"].close()


def test_an_end_that_came_before_its_name_is_recorded(spawner: Spawner, process: subprocess.Popen[bytes]) -> None:
    pod = spawner.pods[UID] = Pod(UID)
    spawner._on_child(process.pid, 3 << 8)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    record = keep(spawner, pod, process.pid)
    assert record.exists() and '"code": 3' in record.read_text()
    pod.kept["run/main/0"].close()


def test_a_dead_supervisors_pid_names_no_supervisor(spawner: Spawner, process: subprocess.Popen[bytes]) -> None:
    """Its pid may be the next container's, whose end would be lost."""
    pod = spawner.pods[UID] = Pod(UID, pid=process.pid)
    spawner._on_child(process.pid, signal.SIGKILL)
    record = keep(spawner, pod, process.pid)
    spawner._on_child(process.pid, 5 << 8)
    assert '"code": 5' in record.read_text()
    pod.kept["run/main/0"].close()


def test_a_removed_pods_supervisor_is_no_orphan(spawner: Spawner, process: subprocess.Popen[bytes]) -> None:
    pod = spawner.pods[UID] = Pod(UID, pid=process.pid)
    spawner._drop_pod(pod)
    spawner._on_child(process.pid, 0)
    assert spawner.orphans == {} and spawner.retiring == set()
