"""`shoal top`: what pods and nodes use at the moment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from shoal.deploy.cli.completing import pods
from shoal.deploy.cli.failures import FAILED, USAGE, CommandError
from shoal.deploy.cli.naming import kind_of
from shoal.deploy.cli.options import Session, all_namespaces_option, check_selectors, selector_option, with_session

if TYPE_CHECKING:
    from shoal.proto.v1 import cluster_pb2 as c

MIB = 1 << 20


@click.command("top")
@with_session
@click.argument("kind", metavar="pods | nodes")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=pods)
@selector_option
@all_namespaces_option
@click.option("--containers", is_flag=True, help="Each container by itself.")
@click.option("--sort-by", type=click.Choice(["cpu", "memory"]), help="Most first (else by name).")
@click.option("--no-headers", is_flag=True, help="Without the first line.")
def command(
    session: Session,
    kind: str,
    name: str | None,
    selector: str,
    containers: bool,
    sort_by: str | None,
    no_headers: bool,
) -> int:
    """Show the CPU and memory that pods or nodes use, measured now.

    \b
    shoal top nodes
    shoal top pods -l app=web --sort-by cpu
    shoal top pod web-0 --containers
    """
    wanted = kind_of(kind)
    if wanted not in ("Pod", "Node"):
        raise CommandError(f"top shows pods or nodes, not {kind}", USAGE)
    if wanted == "Node" and containers:
        raise CommandError("--containers is for pods", USAGE)
    check_selectors(selector, "", [wanted])
    from shoal.proto.v1 import cluster_pb2 as c

    request = c.TopRequest(namespace=session.scope, label_selector=selector, nodes=wanted == "Node")
    if name:
        session.client.get(wanted, session.namespace if wanted == "Pod" else "", name)  # says when there is none
    answer = session.client.top(request)
    rows = _nodes(answer, name) if request.nodes else _pods(answer, name, containers=containers, all_=not session.scope)
    for node in answer.missing:
        print(f"warning: node {node} does not answer", file=sys.stderr)
    if not rows:
        print("nothing that runs was found", file=sys.stderr)
        return FAILED if name or answer.missing else 0
    headers = _headers(request, containers=containers, all_=not session.scope)
    _print(_sorted(rows, sort_by), [] if no_headers else headers)
    return 0


Row = tuple[list[str], float, int]  # the cells, cores, bytes


def _nodes(answer: c.TopResponse, name: str | None) -> list[Row]:
    rows = []
    for node in answer.nodes:
        if name in (None, node.name):
            cpu = [_cores(node.cpu_cores), _share(node.cpu_cores, node.cpu_allocatable)]
            memory = [_bytes(node.memory_bytes), _share(node.memory_bytes, node.memory_allocatable)]
            rows.append(([node.name, *cpu, *memory], node.cpu_cores, node.memory_bytes))
    return rows


def _pods(answer: c.TopResponse, name: str | None, *, containers: bool, all_: bool) -> list[Row]:
    rows: list[Row] = []
    for pod in answer.pods:
        if name not in (None, pod.name):
            continue
        head = [pod.namespace, pod.name] if all_ else [pod.name]
        used = [(c.container, c.cpu_cores, c.memory_bytes) for c in pod.containers]
        if containers:
            rows += [([*head, each, _cores(cpu), _bytes(memory)], cpu, memory) for each, cpu, memory in used]
        else:
            cpu, memory = sum(row[1] for row in used), sum(row[2] for row in used)
            rows.append(([*head, _cores(cpu), _bytes(memory)], cpu, memory))
    return rows


def _sorted(rows: list[Row], by: str | None) -> list[Row]:
    rows = sorted(rows, key=lambda row: row[0])
    if by is None:
        return rows
    return sorted(rows, key=lambda row: row[1] if by == "cpu" else row[2], reverse=True)


def _headers(request: c.TopRequest, *, containers: bool, all_: bool) -> list[str]:
    if request.nodes:
        return ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"]
    names = ["POD", "NAME"] if containers else ["NAME"]
    return [*(["NAMESPACE"] if all_ else []), *names, "CPU(cores)", "MEMORY(bytes)"]


def _cores(cores: float) -> str:
    return f"{round(cores * 1000)}m"


def _bytes(count: int) -> str:
    return f"{count // MIB}Mi"


def _share(part: float, whole: float) -> str:
    return f"{round(100 * part / whole)}%" if whole else "<unknown>"


def _print(rows: Sequence[Row], headers: list[str]) -> None:
    from shoal.deploy.cli.printers.text import table

    for line in table([*([headers] if headers else []), *(row[0] for row in rows)]):
        print(line)
