"""From a pod and an image to what the runtime starts: command, environment, user, limits, files. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.agent.images.port import Image
from shoal.agent.runtime.port import ContainerID, ContainerSpec, Limits, SandboxSpec, StartError
from shoal.proto import quantity
from shoal.proto.qos import qos_class
from shoal.proto.v1 import objects_pb2 as o

MIN_SHARES, MAX_SHARES = 2, 262144  # cgroup v1's bounds of cpu.shares
SHARES_PER_CPU = 1024
QUOTA_PERIOD_US = 100_000
MIN_QUOTA_US = 1_000
DEFAULT_PIDS = 4096  # per pod: enough for a JVM, too few for a fork bomb
MAX_HOSTNAME = 63
GUARANTEED_OOM_ADJ = -997  # the kubelet's qos/policy.go
BEST_EFFORT_OOM_ADJ = 1000
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG_ERROR = "CreateContainerConfigError"
CREATE_ERROR = "CreateContainerError"
CONFIG_REASONS = frozenset({CONFIG_ERROR, CREATE_ERROR})  # nothing has run: the container waits, it has not ended

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a container's spec needs to know of its node."""

    name: str
    address: str  # status.hostIP
    memory_bytes: int  # capacity, for oom_score_adj
    log_root: str
    resolv_conf: str = ""  # the node's own /etc/resolv.conf
    boot_id: str = ""
    allocatable: Mapping[str, int] = field(default_factory=dict)  # cpu in thousandths, the rest in whole units


def hostname(pod: o.Pod) -> str:
    """The pod's name, cut to what a host name may be (kubelet, truncatePodHostnameIfNeeded)."""
    return pod.metadata.name[:MAX_HOSTNAME].rstrip("-.")


def sandbox_spec(pod: o.Pod, node: NodeFacts) -> SandboxSpec:
    return SandboxSpec(pod.metadata.uid, hostname(pod), pod_limits(pod, node))


def container_spec(
    pod: o.Pod, container: o.Container, image: Image, attempt: int, pod_ip: str, node: NodeFacts
) -> ContainerSpec:
    """One run, ready to start. Raises StartError when the manifest and the image cannot be brought together."""
    context, shared = container.securityContext, pod.spec.securityContext
    run_as_user = _first(context, shared, "runAsUser")
    run_as_group = _first(context, shared, "runAsGroup")
    non_root = bool(_first(context, shared, "runAsNonRoot"))
    if non_root and run_as_user == 0:
        raise StartError(
            CONFIG_ERROR,
            f"container {container.name} has runAsNonRoot and runAsUser 0: one of the two must go",
        )
    own = own_environment(container)
    return ContainerSpec(
        id=ContainerID(pod.metadata.uid, container.name, attempt),
        layers=tuple(image.layers),
        argv=command(container, image, own),
        env={**base_environment(hostname(pod)), **image.config.env, **own},
        cwd=container.workingDir or image.config.working_dir or "/",
        user=image.config.user,
        run_as_user=run_as_user,
        run_as_group=run_as_group,
        run_as_non_root=non_root,
        read_only_root=context.readOnlyRootFilesystem,
        no_new_privs=context.HasField("allowPrivilegeEscalation") and not context.allowPrivilegeEscalation,
        drop_capabilities=tuple(name.upper().removeprefix("CAP_") for name in context.capabilities.drop),
        limits=container_limits(pod, container, node),
        files=managed_files(pod, pod_ip, node),
        log_path=log_path(node.log_root, pod.metadata.uid, container.name, attempt),
    )


def _first(context: o.SecurityContext, shared: o.PodSecurityContext, name: str) -> int | None:
    """The container's value wins over the pod's; None when neither has one."""
    for holder in (context, shared):
        if holder.HasField(name):  # type: ignore[arg-type]
            return int(getattr(holder, name))
    return None


def log_path(root: str, uid: str, container: str, attempt: int) -> str:
    """The file that one run's output goes to; `uid` and `container` are validated names."""
    return f"{root}/{uid}/{container}/{attempt}.log"


# ---- command and environment ----
def command(container: o.Container, image: Image, env: Mapping[str, str]) -> Sequence[str]:
    """Kubernetes' rules: `command` replaces ENTRYPOINT and drops CMD, `args` alone replaces CMD."""
    if container.command:
        argv = [*container.command, *container.args]
    else:
        argv = [*image.config.entrypoint, *(container.args or image.config.cmd)]
    if container.command or container.args:
        own = len(container.command) + len(container.args)
        argv = argv[: len(argv) - own] + [expand(word, env) for word in argv[len(argv) - own :]]
    if not argv:
        raise StartError(
            CREATE_ERROR,
            f"container {container.name}: no command: image {container.image} has neither ENTRYPOINT nor CMD; "
            "write `command` in the manifest",
        )
    return tuple(argv)


def own_environment(container: o.Container) -> dict[str, str]:
    """The manifest's variables: the only ones that `$(NAME)` can refer to (kubelet, makeEnvironmentVariables)."""
    env: dict[str, str] = {}
    for variable in container.env:
        env[variable.name] = expand(variable.value, env)
    return env


def base_environment(host: str) -> dict[str, str]:
    """What every container has, unless its image or manifest says otherwise. HOME is the runtime's to find: it stands
    in the image's passwd."""
    return {"PATH": DEFAULT_PATH, "HOSTNAME": host}


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, `$$` becomes `$`; an unknown name stays as it is written."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else env.get(name, match[0])

    return _REFERENCE.sub(value, text)


def references_in(text: str) -> list[str]:
    """The names that `expand` would look up."""
    return [match[1] for match in _REFERENCE.finditer(text) if match[1] is not None]


# ---- resources ----
def amounts(container: o.Container, which: str, resource: str) -> int | None:
    """A limit or request in milli-CPU or bytes; a request that is missing is its limit; None when unset."""
    resources = container.resources
    table = resources.limits if which == "limits" else resources.requests
    if resource not in table:
        return amounts(container, "limits", resource) if which == "requests" else None
    text = table[resource].text
    return quantity.milli(text) if resource == "cpu" else quantity.whole(text)


def shares(milli_cpu: int) -> int:
    return min(max(milli_cpu * SHARES_PER_CPU // 1000, MIN_SHARES), MAX_SHARES)


def quota(milli_cpu: int | None) -> int | None:
    """Microseconds per 100 ms; None (no limit) for none or 0."""
    return max(milli_cpu * QUOTA_PERIOD_US // 1000, MIN_QUOTA_US) if milli_cpu else None


def container_limits(pod: o.Pod, container: o.Container, node: NodeFacts) -> Limits:
    return Limits(
        cpu_shares=shares(amounts(container, "requests", "cpu") or 0),
        cpu_quota_us=quota(amounts(container, "limits", "cpu")),
        memory_bytes=amounts(container, "limits", "memory") or None,
        pids=DEFAULT_PIDS,
        oom_score_adj=oom_score_adj(pod, container, node.memory_bytes),
    )


def pod_limits(pod: o.Pod, node: NodeFacts) -> Limits:
    """The pod's own cgroup: the sum of requests, and of limits where every container has one."""
    containers = pod.spec.containers
    return Limits(
        cpu_shares=shares(sum(amounts(c, "requests", "cpu") or 0 for c in containers)),
        cpu_quota_us=quota(_sum_of_all(amounts(c, "limits", "cpu") for c in containers)),
        memory_bytes=_sum_of_all(amounts(c, "limits", "memory") for c in containers),
        pids=DEFAULT_PIDS,
    )


def _sum_of_all(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return sum(value or 0 for value in known) if known and all(known) else None


def oom_score_adj(pod: o.Pod, container: o.Container, capacity: int) -> int:
    """The kubelet's GetContainerOOMScoreAdjust: the less is requested, the sooner the kernel picks it."""
    qos = qos_class(pod.spec)
    if qos == "Guaranteed":
        return GUARANTEED_OOM_ADJ
    if qos == "BestEffort":
        return BEST_EFFORT_OOM_ADJ
    request = amounts(container, "requests", "memory") or 0
    adjust = 1000 - 1000 * request // max(capacity, 1)
    return min(max(adjust, 1000 + GUARANTEED_OOM_ADJ), BEST_EFFORT_OOM_ADJ - 1)


# ---- files ----
def managed_files(pod: o.Pod, pod_ip: str, node: NodeFacts) -> dict[str, str]:
    """The files that the node writes for every container of the pod."""
    host = hostname(pod)
    hosts = (
        "# Written by Shoal; changes are lost with the container.\n"
        "127.0.0.1\tlocalhost\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n"
        "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
    )
    files = {"/etc/hosts": hosts + (f"{pod_ip}\t{host}\n" if pod_ip else ""), "/etc/hostname": f"{host}\n"}
    if node.resolv_conf:
        files["/etc/resolv.conf"] = node.resolv_conf
    return files
