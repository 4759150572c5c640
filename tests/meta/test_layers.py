"""Who may import whom: the rules of ARCHITECTURE.md, read from the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = ("proto", "master", "agent", "deploy")
FILES = sorted(p for top in TOP for p in (ROOT / top).rglob("*.py") if "_pb2" not in p.name)
HELPERS = ("spawner", "supervisor", "init")  # agent/runtime: what runs without site-packages
PURE = ("master/scheduler", "master/controllers", "master/planning", "master/volumes.py")
PLANNING_TOO = ("shoal.master.planning", "shoal.master.store.apply", "shoal.master.store.decide")
IMPURE_MODULES = {"asyncio", "time", "random", "socket", "subprocess", "threading", "os", "grpc"}
# Verbs of the command that start the programs themselves.
PROGRAM_VERBS = {"deploy/cli/master.py", "deploy/cli/agent.py", "deploy/cli/scheduler.py"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, absolute; `from shoal.x import y` counts as shoal.x.y."""
    package = ["shoal", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def breaches(path: Path) -> Iterator[str]:
    where = path.relative_to(ROOT).as_posix()
    top = where.split("/")[0]
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "shoal" and len(parts) > 1 and parts[1] in TOP:
            allowed = {top, "proto"} | ({"master", "agent"} if where in PROGRAM_VERBS else set())
            if parts[1] not in allowed:
                yield f"{where}:{line}: {top} must not import {name}"
        if where.startswith(PURE):
            if parts[0] in IMPURE_MODULES:
                yield f"{where}:{line}: pure code must not import {name}"
            inside = tuple(["master", name] for name in ("scheduler", "controllers", "model", "volumes"))
            too = where.startswith("master/planning") and name.startswith(PLANNING_TOO)
            if parts[:2] == ["shoal", "master"] and parts[1:3] not in inside and not too:
                yield f"{where}:{line}: pure code must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_layers_hold(path: Path) -> None:
    assert list(breaches(path)) == []


def reachable(start: Path) -> Iterator[Path]:
    """The siblings that a helper program loads, itself included."""
    seen, todo = set(), [start]
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        yield path
        for _, name in imports(path):
            parts = name.split(".")
            todo += [path.parent / f"{part}.py" for part in parts if (path.parent / f"{part}.py").exists()]


@pytest.mark.parametrize("program", HELPERS)
def test_helpers_import_the_standard_library_only(program: str) -> None:
    start = ROOT / "agent/runtime" / f"{program}.py"
    if not start.exists():
        pytest.fail(f"{start} is missing")
    for path in reachable(start):
        local = {p.stem for p in path.parent.glob("*.py")}
        for line, name in imports(path):
            head = name.split(".")[0]
            ok = head in sys.stdlib_module_names or head in local or name.startswith("shoal.agent.runtime.")
            assert ok, f"{path.name}:{line}: {program} must run without site-packages, but imports {name}"


GRPC_ADAPTERS = {
    "master/store/etcd.py",
    "master/store/etcd_lease.py",
    "master/api/grpc_server.py",
    "master/api/forward.py",
    "master/dispatcher/grpc_link.py",
    "master/main.py",
    "agent/grpc_link.py",
    "agent/main.py",
    "agent/probes/health.py",
    "deploy/cli/client.py",
}


def test_grpc_is_imported_by_adapters_only() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for _, name in imports(path)
        if name.split(".")[0] == "grpc" or name.endswith("_pb2_grpc")
    }
    assert found <= GRPC_ADAPTERS, f"grpc belongs into adapters: {sorted(found - GRPC_ADAPTERS)}"
