"""The agent's configuration: file and flags, and every mistake at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.agent.config import Config, ConfigError, check, load
from shoal.agent.images.fake import FakeImages
from shoal.agent.machine import Capacity
from shoal.agent.main import EXIT_USAGE, main, parse, pod_resolv_conf
from shoal.agent.node import NodeReporter
from shoal.agent.runtime.settings import load as load_settings
from shoal.agent.spawn import main as spawn
from shoal.agent.spawn import prepare, settings_of
from tests.agent_world import StillMachine

GOOD: dict[str, Any] = {
    "node": "n1",
    "masters": ["10.0.0.254:7000", "[fd00::1]:7000"],
    "ca": "/c/ca.crt",
    "certificate": "/c/n1.crt",
    "key": "/c/n1.key",
    "address": "10.0.0.1",
}


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check({name: value for name, value in {**GOOD, **changes}.items() if value is not None}, "agent.yaml")
    return str(caught.value)


def test_a_development_node_is_told_its_share() -> None:
    config = check(
        GOOD
        | {
            "capacity": {"cpu": "1500m", "memory": "1Gi", "pods": "20", "ephemeral-storage": 1000},
            "http": ["10.0.0.1:10250"],
            "cgroup": "shoal-dev/n1",
            "data": "/d",
            "reserved": {"cpu": "100m"},
        },
        "agent.yaml",
    )
    assert config.dev_capacity() == Capacity(1500, 1 << 30, 20, 1000)
    assert config.http == (("10.0.0.1", 10250),) and config.masters[1] == "[fd00::1]:7000"
    assert config.data == Path("/d") and config.reserved == {"cpu": 100}


def test_a_real_machine_needs_little() -> None:
    config = check(GOOD, "agent.yaml")
    assert config == Config(
        "n1", ("10.0.0.254:7000", "[fd00::1]:7000"), Path("/c/ca.crt"), Path("/c/n1.crt"), Path("/c/n1.key"), "10.0.0.1"
    )
    assert config.dev_capacity() is None
    unit = check(GOOD | {"cgroup": "machine.slice/shoal", "data": "/d"}, "agent.yaml")
    assert settings_of(unit).data == "/d/runtime"


def test_the_spawner_s_unit_reads_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = check(GOOD | {"data": str(tmp_path / "d"), "run": str(tmp_path / "r")}, "agent.yaml")
    command = prepare(settings_of(config))
    assert command[-3:] == ["spawner", "--config", str(tmp_path / "r/spawner.json")]
    assert load_settings(command[-1]) == settings_of(config)
    assert spawn([]) == EXIT_USAGE and "usage" in capsys.readouterr().err
    assert spawn(["--config", str(tmp_path / "nope")]) == EXIT_USAGE and "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"node": None}, "agent.yaml: node is missing"),
        ({"masters": []}, "masters is missing"),
        ({"masters": "10.0.0.1:7000"}, "masters must be a list, not '10.0.0.1:7000'"),
        ({"masters": ["10.0.0.1"]}, "'10.0.0.1' is not host:port"),
        ({"masters": ["10.0.0.1:99999"]}, "is not host:port"),
        ({"address": "node-1.example"}, "address: Expected 4 octets in 'node-1.example'"),
        ({"address": "fd00::1"}, "address: "),
        ({"nodes": 3}, "nodes is not a setting; known are"),
        ({"capacity": {"cpus": 2}}, "cpus is not a resource of a node"),
        ({"capacity": {"cpu": "two"}}, '"two" is not a quantity'),
        ({"cgroup": "../x"}, "must be a relative path with a part that begins with 'shoal'"),
        ({"cgroup": "/shoal"}, "must be a relative path"),
        ({"cgroup": "system.slice/x"}, "must be a relative path"),
        ({"log_level": "loud"}, "not one of DEBUG"),
        ({"spawner": "yes"}, "neither own (the agent starts it) nor external"),
        ({"spawner": True}, "spawner must be a str"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], text: str) -> None:
    assert text in refused(**changes)


def test_all_mistakes_come_at_once() -> None:
    assert len(refused(node=None, masters=["x"], extra=1).splitlines()) == 3


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("node: n1\nmasters: ['a:1']\nca: c\ncertificate: d\nkey: e\naddress: 10.0.0.1\n")
    path, flags = parse(["--config", str(file), "--node", "n2", "--master", "b:2", "--label", "zone=a,disk=ssd"])
    config = load(path, flags)
    assert (config.node, config.masters, config.labels) == ("n2", ("b:2",), {"zone": "a", "disk": "ssd"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("a: [", "agent.yaml:2: is not valid YAML"),
        ("- x", "must hold one mapping"),
        ("", "must hold one mapping"),
        ("node: a\nca: b\nnode: c\n", 'agent.yaml:3: the key "node" is given twice'),
        ("a: 1\n---\nb: 2\n", "must hold one mapping"),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_program_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    file = tmp_path / "agent.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["--config", str(file)]) == EXIT_USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 127.0.0.53\nsearch x\n", "nameserver 10.0.0.2\n"),
        ("nameserver 127.0.0.1\nnameserver ::1\n", "nameserver 10.0.0.2\n"),
        ("nameserver 127.0.0.1\nnameserver 10.0.0.9\n", "nameserver 127.0.0.1\nnameserver 10.0.0.9\n"),
        ("# nobody\nnameserver\n", "# nobody\nnameserver\n"),
    ],
)
def test_pods_get_name_servers_that_they_can_reach(tmp_path: Path, text: str, expected: str) -> None:
    own, upstream = tmp_path / "resolv.conf", tmp_path / "upstream"
    own.write_text(text)
    upstream.write_text("nameserver 10.0.0.2\n")
    assert pod_resolv_conf(own, upstream) == expected
    assert pod_resolv_conf(own, tmp_path / "none") == text
    assert pod_resolv_conf(tmp_path / "none", upstream) == ""


def test_registries_are_checked_in_every_part() -> None:
    table = {
        "docker.io": {"mirrors": ["http://10.0.0.1:5000/cache", "https://mirror.example.com"]},
        "10.0.0.1:5000": {"insecure": True},
        "*": {"ca": "/etc/ca.crt"},
    }
    config = check(GOOD | {"registries": table, "registry_credentials": "/etc/shoal/registries.json"}, "agent.yaml")
    assert config.registries["docker.io"].mirrors == ("http://10.0.0.1:5000/cache", "https://mirror.example.com")
    assert config.registries["10.0.0.1:5000"].insecure and config.registries["*"].ca == Path("/etc/ca.crt")
    assert config.registry_credentials == Path("/etc/shoal/registries.json")
    for wrong, words in (
        ({"docker.io/library": {}}, "is not a registry's host"),
        ({"docker.io": {"mirror": []}}, "mirrors, insecure, ca"),
        ({"docker.io": {"mirrors": "http://a"}}, "must be a list"),
        ({"docker.io": {"mirrors": ["10.0.0.1:5000"]}}, "such as https://mirror.example.com:5000"),
        ({"docker.io": {"mirrors": ["http://user:word@a:1"]}}, "is not a mirror's URL"),
        ({"docker.io": {"insecure": "yes"}}, "true or false"),
        ({"docker.io": {"ca": "ca.crt"}}, "absolute path"),
    ):
        assert words in refused(registries=wrong)


# ---- devices ----
def test_devices_are_told_and_reported() -> None:
    config = check(GOOD | {"extended_resources": {"shoal.dev/gpu": 4, "example.com/fpga": "2"}}, "agent.yaml")
    assert config.extended_resources == {"shoal.dev/gpu": 4, "example.com/fpga": 2}
    _, flags = parse(["--extended-resources", "shoal.dev/gpu=4"])
    assert load(None, flags | GOOD).extended_resources == {"shoal.dev/gpu": 4}
    reporter = NodeReporter(StillMachine(), FakeImages(), "10.0.0.1", "1", devices=config.extended_resources)
    report = reporter.report()
    for amounts in (report.capacity, report.allocatable):
        assert (amounts["shoal.dev/gpu"].text, amounts["example.com/fpga"].text) == ("4", "2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu": 1}, '"gpu" needs a domain in front, such as example.com/gpu'),
        ({"shoal.dev/gpus": 1}, 'did you mean "shoal.dev/gpu"?'),
        ({"shoal.dev/gpu-milli": 4000}, "tell how many whole devices there are with shoal.dev/gpu"),
        ({"shoal.dev/gpu": 1025}, "shoal.dev/gpu must be a whole number from 0 to 64, but it is 1025"),
        ({"kubernetes.io/x": 1}, "kubernetes.io has none of its own"),
        ({"example.com/fpga": "500m"}, "example.com/fpga must be a whole number"),
        ({"example.com/fpga": -1}, "example.com/fpga must be a whole number from 0 to"),
        ({"example.com/fpga": "2Ei"}, "example.com/fpga must be a whole number from 0 to"),
        ({"example.com/fpga": "many"}, '"many" is not a quantity'),
        ({"example.com/fpga": None}, '"None" is not a quantity'),
        (["shoal.dev/gpu"], "extended_resources must be a dict"),
    ],
)
def test_devices_that_cannot_be(given: object, message: str) -> None:
    assert message in refused(extended_resources=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"disk": "very fast"}, 'labels: disk: "very fast" is not a valid label value'),
        ({"a b": "c"}, 'labels: a b: "a b" is not a valid key'),
        ({f"l{n}": "x" for n in range(10_000)}, "labels: has 10000 entries: at most 500 are allowed"),
    ],
)
def test_labels_that_no_node_can_have(given: dict[str, str], message: str) -> None:
    assert message in refused(labels=given)
