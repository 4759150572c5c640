"""Trees to messages and back: the special types, presence, order."""

import pytest

from shoal.proto import known, walker
from shoal.proto.v1 import objects_pb2 as o


def test_presence_is_kept() -> None:
    tree = {"replicas": 0, "template": {"spec": {"containers": [{"name": "a", "resources": {}}]}}}
    message, problems = walker.from_tree(tree, o.DeploymentSpec)
    assert problems == []
    assert message.HasField("replicas")
    assert not message.HasField("selector")
    assert walker.to_tree(message) == tree


def test_zeroes_that_scripts_read_are_shown_in_their_place() -> None:
    tree = walker.to_tree(o.ContainerStatus(name="a", image="i"))
    assert list(tree.items()) == [("name", "a"), ("ready", False), ("restartCount", 0), ("image", "i")]


def test_quantities_times_and_bytes() -> None:
    tree = {"limits": {"cpu": 2, "memory": "64Mi"}, "requests": {"cpu": 0.5}}
    message, problems = walker.from_tree(tree, o.ResourceRequirements)
    assert problems == []
    assert walker.to_tree(message) == {"limits": {"cpu": "2", "memory": "64Mi"}, "requests": {"cpu": "0.5"}}
    secret, problems = walker.from_tree({"data": {"a": "aGVs\nbG8=\n"}}, o.Secret)
    assert problems == []
    assert secret.data["a"] == b"hello"


def test_int_or_string() -> None:
    for tree in (5, "25%"):
        message = o.IntOrString()
        walker._read_int_or_string(message, tree, "x", [])
        assert walker._SPECIAL_WRITERS["IntOrString"](message) == tree


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("1970-01-01T00:00:00Z", (0, 0)),
        ("2024-05-01T12:00:00Z", (1714564800, 0)),
        ("2024-05-01T14:00:00+02:00", (1714564800, 0)),
        ("2024-05-01t12:00:00.5z", (1714564800, 500_000_000)),
        ("1969-12-31T23:59:59.999999999Z", (-1, 999_999_999)),
        ("0001-01-01T00:00:00Z", (-62135596800, 0)),
    ],
)
def test_times(text: str, instant: tuple[int, int]) -> None:
    assert walker.parse_time(text) == instant
    assert walker.parse_time(walker.format_time(*instant)) == instant


@pytest.mark.parametrize(
    "text", ["", "2024-05-01", "2024-13-01T00:00:00Z", "2024-05-01T12:00:00", "2024-05-01T24:00:00Z"]
)
def test_bad_times(text: str) -> None:
    assert walker.parse_time(text) is None


def test_known_fields_do_not_hide_declared_ones() -> None:
    for name, fields in known.UNSUPPORTED_FIELDS.items():
        declared = {field.name for field in getattr(o, name).DESCRIPTOR.fields}
        assert not declared & fields.keys(), name
    assert not known.OTHER_KINDS.keys() & known.API_VERSIONS.keys()
