"""`shoal up`: a development cluster of real processes on this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.deploy.cli.contexts import Context, config_path, put
from shoal.deploy.cli.failures import OK, TIMED_OUT, USAGE, CommandError
from shoal.deploy.cli.options import DURATION

if TYPE_CHECKING:
    from shoal.deploy.devcluster.plan import ClusterPlan

DEFAULT_NAME = "dev"
DEFAULT_TIMEOUT_SECONDS = 120.0
MOST_DIGITS = 9  # of a number of devices
_DID = {
    "started": "started",
    "replaced": "is running; its keeper was gone and has a successor",
    "running": "is running",
}


@click.command("up")
@click.option("--name", default=DEFAULT_NAME, metavar="NAME", help=f"The cluster and its context ({DEFAULT_NAME}).")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="How many small machines (3).")
@click.option("--masters", type=click.IntRange(min=1), default=1, metavar="N", help="How many masters (1).")
@click.option("--data", metavar="FOLDER", help="Where it keeps everything (/var/lib/shoal/NAME).")
@click.option("--etcd", metavar="PATH", help="The etcd binary, if it is not found by itself.")
@click.option(
    "--heartbeat-ms", type=click.IntRange(min=0), default=0, metavar="MS", help="Instead of the master's choice."
)
@click.option("--node-disk", default="", metavar="SIZE", help="Give each node a disk of its own, such as 2Gi.")
@click.option("--node-memory", default="", metavar="SIZE", help="Give each node so much memory (an equal share).")
@click.option("--node-pids", type=click.IntRange(min=0), default=0, metavar="N", help="So many processes per node.")
@click.option("--node-resources", default="", metavar="NAME=N,...", help="Devices of each node (shoal.dev/gpu=4).")
@click.option("--agent-settings", metavar="FILE", help="YAML with more settings for every agent, such as `eviction`.")
@click.option(
    "--registry-mirror",
    "mirrors",
    multiple=True,
    metavar="REGISTRY=URL",
    help="Ask URL first for REGISTRY's images ('*': for all); the host `gateway` is this machine. May be repeated.",
)
@click.option(
    "--insecure-registry",
    "insecure",
    multiple=True,
    metavar="HOST:PORT",
    help="Take images from it over plain http too; may be repeated.",
)
@click.option("--registry", is_flag=True, help="Run a registry beside the nodes, the first that they ask for images.")
@click.option(
    "--timeout", type=DURATION, default=DEFAULT_TIMEOUT_SECONDS, metavar="TIME", help="Until all are ready (2m)."
)
def command(
    name: str,
    nodes: int | None,
    masters: int,
    data: str | None,
    etcd: str | None,
    heartbeat_ms: int,
    node_disk: str,
    node_memory: str,
    node_pids: int,
    node_resources: str,
    agent_settings: str | None,
    mirrors: tuple[str, ...],
    insecure: tuple[str, ...],
    registry: bool,
    timeout: float,
) -> int:
    """Start a development cluster on this machine, or bring all of it back."""
    from shoal.deploy.certs.ca import CertificateError
    from shoal.deploy.devcluster import lifecycle
    from shoal.deploy.devcluster.plan import DATA_ROOT, Refusal, Wishes, check_name, registry_settings

    size, memory = _bytes("--node-disk", node_disk), _bytes("--node-memory", node_memory)
    told = _settings(agent_settings) | _devices(node_resources)
    try:
        check_name(name)
        registries = registry_settings(mirrors, insecure)
        lifecycle.need_root("up")
        folder = Path(data) if data else DATA_ROOT / name
        with lifecycle.locked(name):
            wishes = Wishes(nodes, masters, etcd, heartbeat_ms, size, memory, node_pids, told, registries, registry)
            plan, _ = lifecycle.prepare(name, folder.absolute(), wishes)
            context = context_of(plan)
            put(context)
            did = lifecycle.ensure_keeper(plan)
    except (Refusal, CertificateError) as refused:
        raise CommandError(str(refused)) from None
    print(f"cluster {name} {_DID.get(did, did)}: {len(plan.nodes)} node(s), context {name} in {config_path()}")
    if plan.registry:
        print(f"its registry, which nodes ask first for images of docker.io, is {plan.registry_address}")
    return _wait(context, plan, timeout)


def _settings(path: str | None) -> dict[str, Any]:
    """A YAML file that holds a mapping; {} without one. Raises CommandError. The agent checks what is in it."""
    if path is None:
        return {}
    from shoal.proto.settings_file import SettingsFileError, read_settings

    try:
        plain: dict[str, Any] = json.loads(json.dumps(read_settings(Path(path))))  # without the places in the file
        return plain
    except SettingsFileError as fault:
        raise CommandError(f"--agent-settings: {fault}", USAGE) from None


def _devices(text: str) -> dict[str, Any]:
    """The agents' setting for NAME=N,NAME=N; {} for none. Raises CommandError."""
    from shoal.proto.rules.resources import GPU_MILLI, not_extended

    found: dict[str, int] = {}
    for item in text.split(",") if text else ():
        name, _, number = item.partition("=")
        if not number.isdecimal() or len(number) > MOST_DIGITS:
            raise CommandError(f'--node-resources: "{item}" is not NAME=N, such as shoal.dev/gpu=4', USAGE)
        if name == GPU_MILLI or (wrong := not_extended(name)):
            advice = "use shoal.dev/gpu=N for N devices" if name == GPU_MILLI else wrong
            raise CommandError(f"--node-resources: {name}: {advice}", USAGE)
        found[name] = int(number)
    return {"extended_resources": found} if found else {}


def _bytes(flag: str, text: str) -> int:
    """The amount in bytes; 0 for none. Raises CommandError."""
    from shoal.proto.quantity import QuantityError, whole

    try:
        return whole(text) if text else 0
    except QuantityError as wrong:
        raise CommandError(f"{flag}: {wrong}", USAGE) from None


def context_of(plan: ClusterPlan) -> Context:
    """How the command reaches that cluster."""
    servers = tuple(f"127.0.0.1:{port}" for port in plan.master_ports)
    paths = (str(plan.certs / file) for file in ("ca.crt", "admin.crt", "admin.key"))
    return Context(plan.name, servers, *paths)


def _wait(context: Context, plan: ClusterPlan, timeout: float) -> int:
    """Until every node is ready; says which are not."""
    from shoal.deploy.cli.client import Client
    from shoal.deploy.cli.follow import follow
    from shoal.deploy.cli.printers.status import ready_state
    from shoal.deploy.cli.waiting import Progress

    deadline, progress = time.monotonic() + timeout, Progress()
    missing = {node.name for node in plan.nodes}
    with Client(context, patience=timeout, unreachable=timeout) as client:
        try:
            progress.show("waiting for a master")
            for state in follow(client, ["Node"], "", deadline):
                missing = {node.name for node in plan.nodes}
                missing -= {key[2] for key, node in state.items() if ready_state(node)[0]}
                if not missing:
                    progress.clear()
                    print(f"all {len(plan.nodes)} node(s) are ready")
                    return OK
                progress.show(f"waiting for {len(missing)} of {len(plan.nodes)} nodes: {', '.join(sorted(missing))}")
        except CommandError as error:
            raise CommandError(f"{error}; its logs are in {plan.folder / 'logs'}", TIMED_OUT) from None
        finally:
            progress.clear()
    logs = plan.folder / "logs"
    print(
        f"error: not ready after {timeout:g} s: {', '.join(sorted(missing))}; the logs are in {logs}", file=sys.stderr
    )
    return TIMED_OUT
