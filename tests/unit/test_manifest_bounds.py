"""Hostile manifests: bombs, depth, size. Each is refused quickly and with one clear error."""

import time

import pytest

from shoal.proto import yamltree
from shoal.proto.manifest import parse

PATIENCE_S = 20  # far above what these take; a bomb would take hours


def refused(text: str) -> str:
    started = time.monotonic()
    found = parse(text, "f.yaml").errors
    assert time.monotonic() - started < PATIENCE_S
    assert len(found) == 1, found
    return str(found[0])


def test_billion_laughs() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "its aliases expand to more than 10 MB" in refused("\n".join(lines))


def test_quadratic_blow_up() -> None:
    text = f"a: &a {'x' * 200_000}\nb: [{', '.join(['*a'] * 900)}]"
    assert "its aliases expand to more than 10 MB" in refused(text)


def test_many_aliases() -> None:
    assert "has more than 1000 aliases" in refused(f"a: &a x\nb: [{', '.join(['*a'] * 1001)}]")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting(opening: str) -> None:
    assert "is nested deeper than 100 levels" in refused(opening * 5000)


def test_depth_through_aliases() -> None:
    lines = ["a0: &a0 [" + "[" * 50 + "]" * 51]
    lines += [f"a{n}: &a{n} [[[[[[[[[[*a{n - 1}]]]]]]]]]]" for n in range(1, 8)]
    assert "is nested deeper than 100 levels" in refused("\n".join(lines))


def test_deep_json_that_only_the_second_reader_takes() -> None:
    text = '{"a":"\\ud83d\\ude00","b":' + "[" * 90_000 + "]" * 90_000 + "}"
    assert "f.yaml" in refused(text)


def test_ten_megabytes() -> None:
    assert "is larger than 10 MB" in refused("# " + "x" * yamltree.MAX_BYTES)
    assert "is larger than 10 MB" in refused("é" * (yamltree.MAX_BYTES // 2 + 1))


def test_nine_megabytes_are_read() -> None:
    data = "".join(f"  k{n}: {'v' * 1000}\n" for n in range(9000))
    parsed = parse("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n" + data)
    assert [error.message for error in parsed.errors] == [
        f"holds {parsed_size(parsed.objects[0].message)} bytes: a ConfigMap holds at most 1048576; split it"
    ]


def parsed_size(config_map: object) -> int:
    data = dict(config_map.data)  # type: ignore[attr-defined]
    return sum(len(key) + len(value) for key, value in data.items())


def test_many_objects() -> None:
    assert "holds more than 10000 objects" in refused(
        "kind: X\n---\n" * 0 + "---\n".join([NAMESPACE % n for n in range(10_002)])
    )


NAMESPACE = "{apiVersion: v1, kind: Namespace, metadata: {name: n%d}}\n"


@pytest.mark.parametrize(
    "text", ["\x00", "a: \x01", "%YAML 9.9\n---\na", "a: \ud800", "&", "*", "!", "---\n...\n? :", "\ufeff{"]
)
def test_garbage_is_an_error_not_a_traceback(text: str) -> None:
    for error in parse(text, "f.yaml").errors:
        assert str(error).startswith("f.yaml")


def test_a_byte_order_mark_is_fine() -> None:
    assert parse("\ufeff" + NAMESPACE % 1).errors == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0644", 0o644),
        ("0o644", 0o644),
        ("0x1F", 31),
        ("-7", -7),
        ("08", "08"),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        ("1e", "1e"),
        (".", "."),
        ("-", "-"),
        ("12:30:45", "12:30:45"),
        ("2024-05-01", "2024-05-01"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("nan", "nan"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    found = yamltree.plain_value(text)
    assert found == value
    assert isinstance(found, str) == isinstance(value, str)
