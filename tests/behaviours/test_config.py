"""What containers learn of themselves, of ConfigMaps and of Secrets by their environment: B53 to B55, B63."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.behaviours.world import Object, World, config_map, container, pod, secret
from tests.devcluster import Cluster


@pytest.fixture
def elsewhere(cluster: Cluster, tmp_path: Path) -> Iterator[World]:
    """A second namespace."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    made = World(cluster, folder)
    yield made
    made.close()


def field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def amount(name: str, resource: str, divisor: str) -> Object:
    return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}}


def key(name: str, kind: str, of: str, key: str, **more: Any) -> Object:
    return {"name": name, "valueFrom": {f"{kind}KeyRef": {"name": of, "key": key, **more}}}


def printed(world: World, *names: str, **fields: Any) -> list[str]:
    """The values of variables, as the container's own process has them; `-` for one that is not set."""
    script = "; ".join(f'printf "%s\\n" "${{{name}--}}"' for name in names)
    return world.output(pod("p", container(script, **fields), labels={"app": "shop"})).splitlines()


# ---- B53 ----
def test_b53_a_container_learns_its_pod_s_name_namespace_uid_and_labels(world: World) -> None:
    env = [
        field("NAME", "metadata.name"),
        field("NAMESPACE", "metadata.namespace"),
        field("UID", "metadata.uid"),
        field("APP", "metadata.labels['app']"),
        field("NONE", "metadata.annotations['none']"),
    ]
    found = printed(world, "NAME", "NAMESPACE", "UID", "APP", "NONE", env=env)
    assert found == ["p", world.namespace, world.pod("p")["metadata"]["uid"], "shop", ""]


def test_b53_a_container_learns_its_addresses_and_its_node(world: World) -> None:
    env = [field("POD", "status.podIP"), field("HOST", "status.hostIP"), field("NODE", "spec.nodeName")]
    script = 'echo "$POD $HOST $NODE"; ip -4 -o addr show dev eth0'
    mine, addresses = world.output(pod("p", container(script, env=env))).splitlines()
    found = world.pod("p")
    own, host, node = mine.split()
    assert f" {own}/" in addresses
    assert (host, node) == (found["status"]["hostIP"], found["spec"]["nodeName"])


def test_b53_limits_that_are_not_set_are_what_the_node_can_give(world: World) -> None:
    env = [
        amount("CPU", "limits.cpu", "1m"),
        amount("MEMORY", "limits.memory", "1"),
        amount("REQUEST", "requests.memory", "1Mi"),
        amount("ROUNDED", "requests.cpu", "1"),
    ]
    resources = {"requests": {"memory": "17Mi", "cpu": "120m"}}
    found = printed(world, "CPU", "MEMORY", "REQUEST", "ROUNDED", env=env, resources=resources)
    node = world.get("node", world.pod("p")["spec"]["nodeName"])["status"]["allocatable"]
    cpu = int(node["cpu"][:-1]) if node["cpu"].endswith("m") else 1000 * int(node["cpu"])
    assert found[0] == str(cpu)
    assert int(found[1]) > 17 << 20
    assert found[2:] == ["17", "1"]


def test_b53_limits_that_are_set_are_those(world: World) -> None:
    env = [amount("CPU", "limits.cpu", "1m"), amount("MEMORY", "limits.memory", "1Mi")]
    resources = {"limits": {"memory": "64Mi", "cpu": "250m"}}
    assert printed(world, "CPU", "MEMORY", env=env, resources=resources) == ["250", "64"]


# ---- B54, B55 ----
def holding(kind: str, name: str, data: dict[str, str]) -> Object:
    return config_map(name, data) if kind == "configMap" else secret(name, data)


def by_key(world: World, kind: str) -> None:
    world.apply(holding(kind, "shop", {"colour": "blue and $(NAME)"}))
    env = [key("COLOUR", kind, "shop", "colour"), {"name": "BOTH", "value": "<$(COLOUR)>"}]
    assert printed(world, "COLOUR", "BOTH", env=env) == ["blue and $(NAME)", "<blue and $(NAME)>"]


def whole(world: World, kind: str) -> None:
    """Every key, with and without a prefix; env wins, and what cannot be a variable's name stays away."""
    world.apply(holding(kind, "shop", {"ONE": "1", "TWO": "2"}))
    source = {f"{kind}Ref": {"name": "shop"}}
    env = [{"name": "TWO", "value": "mine"}]
    found = printed(world, "ONE", "TWO", "P_TWO", env=env, envFrom=[source, {"prefix": "P_", **source}])
    assert found == ["1", "mine", "2"]


def held_back(world: World, kind: str) -> None:
    """A missing one, then a missing key, hold the container back, each with its reason; then it starts."""
    title = "ConfigMap" if kind == "configMap" else "Secret"
    env = [key("COLOUR", kind, "late", "colour")]
    world.apply(pod("p", container("echo got $COLOUR; sleep 600", env=env)))
    why = world.waiting("p", "CreateContainerConfigError")
    assert f"{title} {world.namespace}/late does not exist" in why
    assert f"spec.containers[0].env[0].valueFrom.{kind}KeyRef" in why
    world.apply(holding(kind, "late", {"size": "hidden-value"}))

    def names_the_keys(found: Object) -> bool:
        status = found["status"].get("containerStatuses", [{}])[0]
        return "it has: size" in status.get("state", {}).get("waiting", {}).get("message", "")

    found = world.until("p", "waiting for the key", names_the_keys)
    assert "hidden-value" not in str(found)
    world.apply(holding(kind, "late", {"colour": "green"}))
    world.said("p", "got green\n", whole=True)
    assert world.status("p")["restartCount"] == 0


def optional(world: World, kind: str) -> None:
    env = [key("COLOUR", kind, "never", "colour", optional=True)]
    source = {f"{kind}Ref": {"name": "never", "optional": True}}
    assert printed(world, "COLOUR", env=env, envFrom=[source]) == ["-"]


def test_b54_a_config_map_s_key_is_a_variable(world: World) -> None:
    by_key(world, "configMap")


def test_b54_a_whole_config_map_is_variables(world: World) -> None:
    whole(world, "configMap")


def test_b54_a_missing_config_map_holds_the_container_back(world: World) -> None:
    held_back(world, "configMap")


def test_b54_an_optional_config_map_may_be_missing(world: World) -> None:
    optional(world, "configMap")


def test_b55_a_secret_s_key_is_a_variable(world: World) -> None:
    by_key(world, "secret")


def test_b55_a_whole_secret_is_variables(world: World) -> None:
    whole(world, "secret")


def test_b55_a_missing_secret_holds_the_container_back(world: World) -> None:
    held_back(world, "secret")


def test_b55_an_optional_secret_may_be_missing(world: World) -> None:
    optional(world, "secret")


# ---- B63 ----
def test_b63_the_same_name_in_another_namespace_is_another_object(world: World, elsewhere: World) -> None:
    env = [key("CONFIG", "configMap", "same", "k"), key("SECRET", "secret", "same", "k")]
    for place, value in ((world, "here"), (elsewhere, "there")):
        place.apply(config_map("same", {"k": value}), secret("same", {"k": value}))
    for place, value in ((world, "here"), (elsewhere, "there")):
        assert printed(place, "CONFIG", "SECRET", env=env) == [value, value]
