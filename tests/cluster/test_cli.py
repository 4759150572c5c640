"""The command against a real master and etcd, without nodes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.deploy.certs.ca import Authority
from shoal.deploy.cli import contexts
from shoal.deploy.cli.contexts import Context
from shoal.deploy.cli.main import run
from tests.etcd import Server, free_port
from tests.masterproc import MasterProcess, stub_of

GUESTBOOK = Path(__file__).parents[2] / "deploy/examples/guestbook.yaml"
CONFIG_MAP = "{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {a: %s}}"


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasterProcess]:
    folder = tmp_path_factory.mktemp("cli")
    etcd = Server(folder / "etcd")
    process = MasterProcess(folder, etcd)

    async def start() -> None:
        await etcd.start()
        process.start()
        channel = process.channel()
        await process.until_leading(stub_of(channel))
        await channel.close()

    try:
        asyncio.run(start())
        yield process
    finally:
        process.close()
        etcd.remove()


@pytest.fixture
def config(master: MasterProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = master.authority.issue("admin", "alice")
    path = tmp_path / "config"
    made = Context("t", (master.address,), str(master.authority.certificate), str(own.certificate), str(own.key))
    contexts.put(made, path=path)
    monkeypatch.setenv("SHOAL_CONFIG", str(path))
    return path


class Shoal:
    """Runs the command in this process, in a namespace of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        self._capsys, self._tmp = capsys, tmp_path
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        ended = run(list(arguments))
        out, self.err = self._capsys.readouterr()
        assert ended == code, (ended, out, self.err)
        return out

    def file(self, text: str) -> str:
        path = self._tmp / "manifest.yaml"
        path.write_text(text)
        return str(path)

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("get", *arguments, "-o", "json"))["items"]
        return found


@pytest.fixture
def shoal(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Shoal]:
    made = Shoal(capsys, tmp_path)
    yield made
    made("delete", "deploy,rs,pods,cm,secrets", "--all", "--cascade", "background")


def test_apply_get_delete(shoal: Shoal) -> None:
    assert shoal("apply", "-f", str(GUESTBOOK)) == "deployment/web created\npod/redis created\n"
    assert shoal("apply", "-f", str(GUESTBOOK)) == "deployment/web unchanged\npod/redis unchanged\n"
    assert [item["metadata"]["name"] for item in shoal.items("pods", "-l", "tier=backend")] == ["redis"]
    assert shoal("get", "pod", "redis", "-o", "name") == "pod/redis\n"
    assert yaml.safe_load(shoal("get", "pod", "redis", "-o", "yaml"))["kind"] == "Pod"
    assert "Pending" in shoal("get", "po")
    shoal("delete", "-f", str(GUESTBOOK), "--cascade", "foreground")  # in the background its pods may go later
    assert shoal.items("pods") == []


def test_what_get_prints_can_be_applied_again(shoal: Shoal) -> None:
    shoal("apply", "-f", str(GUESTBOOK))
    previous, printed = "", shoal("get", "deploy", "web", "-o", "yaml")
    while printed != previous or "observedGeneration" not in printed:  # its resourceVersion counts: let it settle
        previous, printed = printed, shoal("get", "deploy", "web", "-o", "yaml")
    assert shoal("apply", "-f", shoal.file(printed)) in ("deployment/web unchanged\n", "deployment/web configured\n")


def test_changes_and_removals(shoal: Shoal) -> None:
    assert shoal("apply", "-f", shoal.file(CONFIG_MAP % "x")) == "configmap/conf created\n"
    assert shoal("apply", "-f", shoal.file(CONFIG_MAP % "y"), "--dry-run") == "configmap/conf configured (dry run)\n"
    assert shoal.items("cm")[0]["data"] == {"a": "x"}
    assert shoal("apply", "-f", shoal.file(CONFIG_MAP % "y")) == "configmap/conf configured\n"
    shoal("apply", "-f", shoal.file("{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}}"))
    assert "data" not in shoal.items("cm")[0]


def test_wrong_manifests_change_nothing(shoal: Shoal) -> None:
    text = CONFIG_MAP % "x" + "\n---\n" + CONFIG_MAP.replace("conf", "../x") % "5"
    shoal("apply", "-f", shoal.file(text), code=1)
    assert 'metadata.name: "../x" is not a valid name' in shoal.err
    assert 'data.a: must be a text, but it is the number 5: quote it: "5"' in shoal.err
    assert shoal.items("cm") == []


def test_kinds_that_are_not_supported(shoal: Shoal) -> None:
    path = shoal.file(CONFIG_MAP % "x" + "\n---\n{apiVersion: v1, kind: Service, metadata: {name: web}}")
    shoal("apply", "-f", path, code=1)
    assert "kinds that are not supported: Service (web)" in shoal.err
    assert shoal("apply", "-f", path, "--skip-unsupported") == "configmap/conf created\n"
    assert "warning: skipping kinds that are not supported: Service (web)" in shoal.err


def test_what_only_the_master_can_refuse(shoal: Shoal) -> None:
    shoal("apply", "-n", "nowhere", "-f", shoal.file(CONFIG_MAP % "x"), code=1)
    assert "error: configmap/conf: namespace 'nowhere' not found: create it first" in shoal.err
    shoal("delete", "ns", "default", code=1)
    assert "cannot be deleted" in shoal.err
    shoal("get", "pod", "nosuch", code=1)
    assert "error: pod/nosuch not found in namespace default" in shoal.err
    shoal("logs", "nosuch", code=1)
    assert "not found" in shoal.err


def test_waiting_in_vain_says_why(shoal: Shoal) -> None:
    shoal("apply", "-f", str(GUESTBOOK), "--wait", "--timeout", "5s", code=3)
    assert "error: deployment/web not ready after 5s: 0 of 3 ready" in shoal.err
    assert "  pod/redis: 0/0 nodes are available" in shoal.err
    assert "FailedScheduling" in shoal("events", "--for", "pod/redis")
    assert "0/0 nodes are available" in shoal("describe", "pod", "redis")


def test_scale(shoal: Shoal) -> None:
    shoal("apply", "-f", str(GUESTBOOK))
    assert shoal("scale", "deploy/web", "--replicas", "0", "--wait", "--timeout", "90s") == "deployment/web scaled\n"
    assert shoal.items("pods", "-l", "tier=frontend") == []
    shoal("scale", "deploy/web", "--replicas", "1", "--current-replicas", "5", code=1)
    assert "has 0 replicas now, not 5" in shoal.err


def test_namespaces(shoal: Shoal) -> None:
    text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: team}}\n---\n"
    assert shoal("apply", "-f", shoal.file(text + "{apiVersion: v1, kind: Namespace, metadata: {name: team}}")) == (
        "namespace/team created\nconfigmap/c created\n"
    )
    assert shoal.items("cm") == []
    assert len(shoal.items("cm", "-n", "team")) == len(shoal.items("cm", "-A")) == 1
    shoal("apply", "-n", "other", "-f", shoal.file(text), code=1)
    assert 'says namespace "team", but -n says "other"' in shoal.err
    assert shoal("delete", "ns", "team", "--timeout", "90s") == "namespace/team deleted\n"
    assert shoal.items("cm", "-A") == []


def test_many_objects_go_in_batches_and_come_in_pages(shoal: Shoal) -> None:
    names = [f"c{n:04}" for n in range(1100)]
    one = "{apiVersion: v1, kind: ConfigMap, metadata: {name: %s}}\n"
    shoal("apply", "-f", shoal.file("---\n".join(one % name for name in names)))
    assert [item["metadata"]["name"] for item in shoal.items("cm")] == names


def test_watch_shows_changes_until_it_is_interrupted(shoal: Shoal, config: Path) -> None:
    # A test run in the background of a script inherits an ignored SIGINT.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "shoal.deploy.cli.main"]
    command += ["get", "cm", "-w", "-o", "name"]
    environment = os.environ | {"SHOAL_CONFIG": str(config)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as watching:
        assert watching.stdout is not None
        timer = threading.Timer(120, watching.kill)
        timer.start()
        shoal("apply", "-f", shoal.file(CONFIG_MAP % "x"))
        assert watching.stdout.readline() == "configmap/conf\n"
        shoal("apply", "-f", shoal.file(CONFIG_MAP % "y"))
        assert watching.stdout.readline() == "configmap/conf\n"
        watching.send_signal(2)
        assert watching.wait(90) == 130
        timer.cancel()


# ---- clusters that do not answer ----
def context(master: MasterProcess, path: Path, **changes: Any) -> None:
    own = master.authority.issue("admin", "alice")
    values: dict[str, Any] = {
        "servers": (master.address,),
        "ca": str(master.authority.certificate),
        "certificate": str(own.certificate),
        "key": str(own.key),
    }
    contexts.put(Context(name="t", **(values | changes)), path=path)


def test_nobody_listens(shoal: Shoal, master: MasterProcess, config: Path) -> None:
    context(master, config, servers=(f"127.0.0.1:{free_port()}",))
    shoal("get", "pods", code=1)
    assert "nothing listens there; is the master running?" in shoal.err
    context(master, config)


def test_another_server_is_tried(shoal: Shoal, master: MasterProcess, config: Path) -> None:
    context(master, config, servers=(f"127.0.0.1:{free_port()}", master.address))
    assert "default" in shoal("get", "ns")


def test_certificates_of_somebody_else(shoal: Shoal, master: MasterProcess, config: Path, tmp_path: Path) -> None:
    other = Authority.ensure(tmp_path / "other")
    foreign = other.issue("admin", "eve")
    context(master, config, ca=str(other.certificate))
    shoal("get", "pods", code=1)
    assert "its certificate is not from this context's CA" in shoal.err
    context(master, config, certificate=str(foreign.certificate), key=str(foreign.key))
    shoal("get", "pods", code=1)
    assert "it does not accept our certificate" in shoal.err
    node = master.authority.issue("node", "n1")
    context(master, config, certificate=str(node.certificate), key=str(node.key))
    shoal("get", "pods", code=1)
    assert "shoal:nodes/n1 may not use the cluster's API" in shoal.err
    context(master, config, certificate="/nowhere/admin.crt")
    shoal("get", "pods", code=1)
    assert "cannot read the certificate file /nowhere/admin.crt: No such file" in shoal.err
    context(master, config)


def completed(words: str, index: int, config: Path) -> list[str]:
    environment = os.environ | {
        "_SHOAL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(index),
        "SHOAL_CONFIG": str(config),
    }
    command = [sys.executable, "-m", "shoal.deploy.cli.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion(shoal: Shoal, config: Path) -> None:
    shoal("apply", "-f", shoal.file(CONFIG_MAP % "x"))
    assert completed("shoal ev", 1, config) == ["events"]
    assert completed("shoal get conf", 2, config) == ["configmaps"]
    assert completed("shoal get cm ", 3, config) == ["conf"]
    assert completed("shoal delete cm/", 2, config) == ["cm/conf"]
    assert completed("shoal get banana ", 3, config) == []
