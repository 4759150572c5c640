"""The operator's seccomp profiles: what is understood, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.agent.runtime import profiles
from shoal.agent.runtime.seccomp import ProfileError

ALLOW = {"defaultAction": "SCMP_ACT_ALLOW"}


def compiled(profile: object, *capabilities: str) -> bytes:
    return profiles.compile_json(json.dumps(profile).encode(), "/p.json", capabilities)


def rule(*names: str, **fields: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", **fields}


def test_a_rule_changes_the_program() -> None:
    plain = compiled(ALLOW)
    assert plain
    assert len(plain) % 8 == 0
    assert compiled(ALLOW | {"syscalls": [rule("mkdir")]}) != plain


@pytest.mark.parametrize(
    ("fields", "applies"),
    [
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, False),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"excludes": {"caps": ["CAP_CHOWN"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"minKernel": "4.8"}}, True),
        ({"includes": {"minKernel": "99.1"}}, False),
        ({"includes": {"arches": ["s390x"]}}, False),
        ({"includes": {}, "excludes": {}, "comment": "none"}, True),
    ],
)
def test_conditions_of_a_rule(fields: dict[str, Any], applies: bool) -> None:
    found = compiled(ALLOW | {"syscalls": [rule("mkdir", **fields)]}, "CHOWN")
    assert (found != compiled(ALLOW)) == applies


def test_arguments_on_one_index_are_alternatives() -> None:
    def arg(value: int) -> dict[str, Any]:
        return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}

    both = compiled(ALLOW | {"syscalls": [rule("personality", args=[arg(1), arg(2)])]})
    apart = compiled(ALLOW | {"syscalls": [rule("personality", args=[arg(n)]) for n in (1, 2)]})
    assert both == apart


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ([], "object"),
        ({}, "defaultAction"),
        ({"defaultAction": "ALLOW"}, "'ALLOW'"),
        (ALLOW | {"listenerPath": "/x"}, "listenerPath is not supported"),
        (ALLOW | {"syscalls": {}}, "list"),
        (ALLOW | {"syscalls": ["mkdir"]}, r"syscalls\[0\]"),
        (ALLOW | {"syscalls": [{"action": "SCMP_ACT_KILL"}]}, r"syscalls\[0\].names"),
        (ALLOW | {"syscalls": [rule("mkdir", errnoRet=70000)]}, "70000"),
        (ALLOW | {"syscalls": [rule("mkdir", args=[{"index": 9, "op": "SCMP_CMP_EQ"}])]}, "argument 9"),
        (ALLOW | {"syscalls": [rule("mkdir", args=[{"index": 0, "op": "IS"}])]}, "'IS'"),
        (ALLOW | {"syscalls": [rule("mkdir", includes={"minKernel": "new"})]}, "'new'"),
        (ALLOW | {"syscalls": [rule("mkdir", args=7)]}, "cannot be compiled"),
    ],
)
def test_what_is_not_understood_is_said(profile: object, words: str) -> None:
    with pytest.raises(ProfileError, match=words) as caught:
        compiled(profile)
    assert "/p.json" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "cannot be read"),
        (tmp_path, "no regular|directory"),
        (Path("/dev/zero"), "no regular file"),
    ):
        with pytest.raises(ProfileError, match=words) as caught:
            profiles.read(str(path))
        assert str(path) in str(caught.value)
    (tmp_path / "large").write_bytes(b" " * (profiles.MAX_BYTES + 1))
    with pytest.raises(ProfileError, match="more than"):
        profiles.read(str(tmp_path / "large"))
    with pytest.raises(ProfileError, match="not JSON"):
        profiles.compile_json(b"{", "/p.json")
    with pytest.raises(ProfileError, match="not JSON"):
        profiles.compile_json(b"[" * 100_000, "/p.json")
