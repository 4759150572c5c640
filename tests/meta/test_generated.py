"""The generated modules are what protoc makes of the .proto files today."""

from __future__ import annotations

from pathlib import Path

from tests.meta.protoc import ROOT, generate


def test_generated_modules_are_fresh(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh = {p.name: p.read_bytes() for p in (tmp_path / "shoal/proto/v1").iterdir()}
    committed = {p.name: p.read_bytes() for p in (ROOT / "proto/v1").glob("*_pb2*")}
    assert fresh.keys() == committed.keys()
    stale = sorted(name for name in fresh if fresh[name] != committed[name])
    assert stale == [], "run `make proto`"
