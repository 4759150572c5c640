"""`up` and `down`: what has to be written before the keeper starts, and what has to go when the cluster goes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from shoal.deploy.devcluster import cgroups, disks, links, settings
from shoal.deploy.devcluster.plan import (
    RUN_ROOT,
    ClusterPlan,
    Host,
    Refusal,
    Wishes,
    check_name,
    load,
    new_plan,
    seen_from_nodes,
)
from shoal.deploy.devcluster.processes import Process, Register

ETCD_PLACES = ("etcd", "/usr/bin/etcd", "/usr/local/bin/etcd")
TOOLS = Path(__file__).resolve().parents[2] / ".tools"
UNPACKED_ETCD = TOOLS / "etcd-server/usr/bin/etcd"
UNPACKED_REGISTRY = TOOLS / "docker-registry/usr/bin/docker-registry"
GRACE_SECONDS = 10.0
KEEPER_SECONDS = 10.0


def need_root(what: str) -> None:
    """Raises Refusal for anybody but root."""
    if os.geteuid() != 0:
        raise Refusal(f"`shoal {what}` needs root: it makes namespaces, cgroups and links (try: sudo shoal {what})")


def find_etcd(wanted: str | None) -> str:
    """The etcd binary: the one asked for, the one that `make` unpacked, or one on the PATH. Raises Refusal."""
    for place in [wanted] if wanted else [str(UNPACKED_ETCD), *ETCD_PLACES]:
        found = shutil.which(place)
        if found:
            return found
    raise Refusal(
        f"no etcd at {wanted}" if wanted else "etcd is missing: install it (Debian: etcd-server) or say --etcd PATH"
    )


def find_registry() -> str:
    """The binary of docker's registry: the one that `make` unpacked, or one on the PATH. Raises Refusal."""
    for place in (str(UNPACKED_REGISTRY), "docker-registry"):
        found = shutil.which(place)
        if found:
            return found
    raise Refusal("docker's registry is missing: `make setup-demo` unpacks it, or install it (Debian: docker-registry)")


def free_port(wanted: int = 0) -> int:
    """`wanted` itself, when nobody listens there on any address."""
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0" if wanted else "127.0.0.1", wanted))  # noqa: S104  (it is let go of at once)
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def this_host(folder: Path) -> Host:
    """This machine as `plan.new_plan` wants to know it."""
    memory = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    return Host(
        cpus=os.cpu_count() or 1,
        memory_bytes=memory,
        storage_bytes=shutil.disk_usage(existing).free,
        routes=links.routes(),
        free_port=free_port,
    )


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One `up` or `down` per cluster at a time; a second one waits for the first."""
    path = RUN_ROOT / f"{name}.lock"
    while True:
        RUN_ROOT.mkdir(parents=True, exist_ok=True, mode=0o755)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the last holder took the file away while we waited for it
    try:
        yield
    finally:
        if not (RUN_ROOT / name).exists():
            path.unlink()
            with contextlib.suppress(OSError):
                RUN_ROOT.rmdir()
        os.close(descriptor)


def keeper_of(plan: ClusterPlan) -> Process | None:
    return Register(plan.run).get("keeper")


def running(plan: ClusterPlan) -> dict[str, Process]:
    """Name -> process of everything that the keepers started and that lives."""
    register = Register(plan.run / "processes")
    found = {name: register.get(name) for name in register.names()}
    return {name: process for name, process in found.items() if process is not None}


def prepare(name: str, folder: Path, wishes: Wishes) -> tuple[ClusterPlan, bool]:
    """The plan of the cluster in `folder`, made when there is none; True when it is new. Raises Refusal."""
    check_name(name)
    wishes.check()
    plan = load(folder)
    if plan is not None:
        _check_the_same(plan, wishes)
        return plan, False
    if wishes.node_disk_bytes:
        disks.check(wishes.node_disk_bytes)
    registry = find_registry() if wishes.registry else ""
    plan = new_plan(name, folder, wishes, this_host(folder), find_etcd(wishes.etcd), registry)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    settings.write_all(plan)
    for node in plan.nodes if wishes.node_disk_bytes else ():
        disks.make(plan, node)
    plan.save()
    return plan, True


def _check_the_same(plan: ClusterPlan, wishes: Wishes) -> None:
    """Raises Refusal for what a cluster that is there already cannot become."""
    there, remedy = f"cluster {plan.name} is there already", "`shoal down` takes it away first"
    if wishes.nodes is not None and wishes.nodes != len(plan.nodes):
        raise Refusal(f"{there} with {len(plan.nodes)} node(s), not {wishes.nodes}: {remedy}")
    for flag, wanted, given in (
        ("--heartbeat-ms", wishes.heartbeat_ms, plan.heartbeat_ms),
        ("--node-disk", wishes.node_disk_bytes, plan.node_disk_bytes),
        ("--node-memory", wishes.node_memory_bytes, plan.node_memory_bytes),
        ("--node-pids", wishes.node_pids, plan.node_pids),
        ("--agent-settings", wishes.agent, plan.agent),
    ):
        if wanted and wanted != given:
            raise Refusal(f"{there} with {flag} {given}: {remedy}")
    if wishes.registries and seen_from_nodes(wishes.registries, plan.gateway) != plan.registries:
        raise Refusal(f"{there} with other registries: {remedy}")
    if wishes.registry and not plan.registry:
        raise Refusal(f"{there} without a registry: {remedy}")


def ensure_keeper(plan: ClusterPlan) -> str:
    """Starts a keeper, or tells the living one to power on the nodes that are off. Returns what it did."""
    keeper = keeper_of(plan)
    if keeper is not None:
        keeper.send(signal.SIGHUP)
        return "running"
    logs = plan.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    found = bool(running(plan))
    with open(logs / "keeper.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "shoal.deploy.devcluster.keeper", str(plan.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    return "replaced" if found else "started"


def take_down(name: str, folder: Path, keep_data: bool) -> bool:
    """Ends everything and takes everything away. True when there was something. Raises Refusal."""
    check_name(name)
    plan = load(folder)
    if plan is None:
        if Register(RUN_ROOT / name).get("keeper") is not None or Register(RUN_ROOT / name / "processes").names():
            raise Refusal(f"cluster {name} runs, but its data is not in {folder}: say --data FOLDER as at `shoal up`")
        return False
    keeper = keeper_of(plan)
    if keeper is not None:
        keeper.end(KEEPER_SECONDS)
    processes = running(plan)
    for kind in ("agent-", "holder-", "registry", "master-", "etcd"):
        chosen = [p for n, p in processes.items() if n.startswith(kind)]
        for process in chosen:
            process.send(signal.SIGKILL if kind == "holder-" else signal.SIGTERM)
        for process in chosen:
            process.end(GRACE_SECONDS)
    links.remove_all(plan)
    left = [path for node in plan.nodes for path in cgroups.remove(f"{plan.cgroup}/{node.name}")]
    left += cgroups.remove(plan.cgroup)
    if left:
        raise Refusal(f"processes are left in {', '.join(left)}; run `shoal down` again")
    shutil.rmtree(plan.run, ignore_errors=True)
    if not keep_data:
        delete(folder)
    return True


def delete(folder: Path) -> None:
    """By rm(1): containers choose what lies in there, and Python's own rmtree ends at 1,000 nested folders."""
    done = subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refusal(f"{folder} could not be deleted: {done.stderr.strip()[:500]}; run `shoal down` again")
