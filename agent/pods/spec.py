"""From a pod and an image to what the runtime starts: command, environment, user, limits, files. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.agent.images.port import Image
from shoal.agent.runtime.port import ContainerID, ContainerSpec, Limits, Mount, SandboxSpec, StartError
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
CLUSTER_DOMAIN = "cluster.local"
TERMINATION_PATH = "/dev/termination-log"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG_ERROR = "CreateContainerConfigError"
CREATE_ERROR = "CreateContainerError"
SANDBOX_ERROR = "FailedCreatePodSandBox"
CONFIG_REASONS = frozenset({CONFIG_ERROR, CREATE_ERROR})  # nothing has run: the container waits, it has not ended

HOSTS = (
    "# Written by Shoal; changes are lost with the container.\n"
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
)
MAX_WORD = 128 * 1024 - 1  # characters that references may make of one text: execve takes no more (MAX_ARG_STRLEN)
MAX_WORDS = 4 << 20  # characters of a container's variables, and of its arguments: execve takes less
_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


class TooLong(ValueError):
    """References make a text longer than any process could take it; the message says of how many characters."""


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
    hosts: str = ""  # the node's own /etc/hosts, for pods on its network
    seccomp_root: str = ""  # the folder of Localhost profiles
    version: str = ""  # of the agent
    salt: bytes = field(default=b"", repr=False)  # made at its start and kept nowhere: keys the digests of Secrets


# ---- the pod ----
def hostname(pod: o.Pod, node: NodeFacts | None = None) -> str:
    """spec.hostname or the pod's name, cut to what a host name may be (kubelet, GeneratePodHostNameAndDomain); the
    node's own name for a pod on its network."""
    if pod.spec.hostNetwork and node is not None:
        return node.name
    return domain_name(pod) if pod.spec.setHostnameAsFQDN and pod.spec.subdomain else short_name(pod)


def short_name(pod: o.Pod) -> str:
    return (pod.spec.hostname or pod.metadata.name)[:MAX_HOSTNAME].rstrip("-.")


def domain_name(pod: o.Pod) -> str:
    """host.subdomain.namespace.svc.cluster.local"""
    return f"{short_name(pod)}.{pod.spec.subdomain}.{pod.metadata.namespace}.svc.{CLUSTER_DOMAIN}"


def sandbox_spec(pod: o.Pod, node: NodeFacts) -> SandboxSpec:
    """Raises StartError when the pod's fully qualified name is too long for a host name."""
    host = hostname(pod, node)
    if len(host) > MAX_HOSTNAME + 1:
        raise StartError(
            SANDBOX_ERROR,
            f"setHostnameAsFQDN: {host} has {len(host)} characters, a host name may have {MAX_HOSTNAME + 1}: "
            "shorten the pod's name or its subdomain",
        )
    return SandboxSpec(
        pod.metadata.uid,
        host,
        pod_limits(pod, node),
        sysctls={one.name: one.value for one in pod.spec.securityContext.sysctls},
        share_pid=pod.spec.shareProcessNamespace,
        host_network=pod.spec.hostNetwork,
        host_pid=pod.spec.hostPID,
        host_ipc=pod.spec.hostIPC,
    )


# ---- a container ----
def container_spec(
    pod: o.Pod,
    container: o.Container,
    image: Image,
    attempt: int,
    pod_ip: str,
    node: NodeFacts,
    env: Mapping[str, str],
    mounts: Sequence[Mount] = (),
) -> ContainerSpec:
    """One run, ready to start; `env` is the manifest's own. Raises StartError when the manifest and the image cannot
    be brought together."""
    context, shared = container.securityContext, pod.spec.securityContext
    run_as_user = _first(context, shared, "runAsUser")
    run_as_group = _first(context, shared, "runAsGroup")
    non_root = bool(_first(context, shared, "runAsNonRoot"))
    if non_root and run_as_user == 0:
        raise StartError(
            CONFIG_ERROR,
            f"container {container.name} has runAsNonRoot and runAsUser 0: one of the two must go",
        )
    privileged = bool(context.privileged)
    return ContainerSpec(
        id=ContainerID(pod.metadata.uid, container.name, attempt),
        layers=tuple(image.layers),
        argv=command(container, image, env),
        env={**base_environment(hostname(pod, node)), **image.config.env, **env},
        cwd=container.workingDir or image.config.working_dir or "/",
        user=image.config.user,
        run_as_user=run_as_user,
        run_as_group=run_as_group,
        run_as_non_root=non_root,
        read_only_root=context.readOnlyRootFilesystem,
        no_new_privs=context.HasField("allowPrivilegeEscalation") and not context.allowPrivilegeEscalation,
        drop_capabilities=_capabilities(context.capabilities.drop),
        add_capabilities=_capabilities(context.capabilities.add),
        limits=container_limits(pod, container, node),
        files=managed_files(pod, pod_ip, node),
        log_path=log_path(node.log_root, pod.metadata.uid, container.name, attempt),
        mounts=tuple(mounts),
        supplemental_groups=_groups(shared),
        seccomp="unconfined" if privileged else seccomp(context, shared, node),
        privileged=privileged,
        termination_path=container.terminationMessagePath or TERMINATION_PATH,
        stdin=container.stdin,
        stdin_once=container.stdinOnce,
        tty=container.tty,
    )


def _capabilities(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.upper().removeprefix("CAP_") for name in names)


def _groups(shared: o.PodSecurityContext) -> tuple[int, ...]:
    own = [shared.fsGroup] if shared.HasField("fsGroup") else []
    return tuple(dict.fromkeys([*shared.supplementalGroups, *own]))


def seccomp(context: o.SecurityContext, shared: o.PodSecurityContext, node: NodeFacts) -> str:
    """The container's profile, else the pod's: "" the default one, "unconfined", or a path on the node."""
    profile = next((holder.seccompProfile for holder in (context, shared) if holder.HasField("seccompProfile")), None)
    if profile is None or profile.type in ("", "RuntimeDefault"):
        return ""
    if profile.type == "Unconfined":
        return "unconfined"
    name = profile.localhostProfile
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise StartError(
            CONFIG_ERROR, f"seccompProfile.localhostProfile {name!r} must be a path below the node's folder"
        )
    return f"{node.seccomp_root}/{name}"


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
        argv = argv[: len(argv) - own] + _expanded(argv[len(argv) - own :], env, container.name)
    if not argv:
        raise StartError(
            CREATE_ERROR,
            f"container {container.name}: no command: image {container.image} has neither ENTRYPOINT nor CMD; "
            "write `command` in the manifest",
        )
    return tuple(argv)


def _expanded(words: Iterable[str], env: Mapping[str, str], container: str) -> list[str]:
    """Raises StartError for what references make too long."""
    found, total = list[str](), 0
    try:
        for word in words:
            found.append(expand(word, env))
            total += len(found[-1])
            if total > MAX_WORDS:
                raise TooLong(f"they have over {MAX_WORDS} characters together")
    except TooLong as fault:
        raise StartError(CONFIG_ERROR, f"container {container}: command and args: {fault}") from fault
    return found


def base_environment(host: str) -> dict[str, str]:
    """What every container has, unless its image or manifest says otherwise. HOME is the runtime's to find: it stands
    in the image's passwd."""
    return {"PATH": DEFAULT_PATH, "HOSTNAME": host}


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, `$$` becomes `$`; an unknown name stays as it is written. Raises TooLong: values
    that name each other twice would double in length each time."""
    grown = sum(len(env.get(name, "")) for name in references_in(text))
    if grown > MAX_WORD:
        raise TooLong(f"$(NAME) makes {grown} characters of {text[:40]!r}: at most {MAX_WORD} can be passed")

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
    """The pod's own cgroup: what its containers request together, and their limits where every one has one."""
    return Limits(
        cpu_shares=shares(with_overhead(pod, together(pod, "requests", "cpu") or 0, "cpu") or 0),
        cpu_quota_us=quota(with_overhead(pod, together(pod, "limits", "cpu"), "cpu")),
        memory_bytes=with_overhead(pod, together(pod, "limits", "memory"), "memory"),
        pids=DEFAULT_PIDS,
    )


def with_overhead(pod: o.Pod, amount: int | None, resource: str) -> int | None:
    """The same with what the pod takes on top of its containers; no limit stays none."""
    if amount is None or resource not in pod.spec.overhead:
        return amount
    text = pod.spec.overhead[resource].text
    return amount + (quantity.milli(text) if resource == "cpu" else quantity.whole(text))


def together(pod: o.Pod, which: str, resource: str) -> int | None:
    """The most that the pod's containers have at one time: those of the app with all sidecars, or an init container
    with the sidecars before it (KEP-753). None: a limit that one of them lacks."""

    def amount(container: o.Container) -> int:
        return amounts(container, which, resource) or 0

    every = (*pod.spec.initContainers, *pod.spec.containers)
    if which == "limits" and not all(amounts(c, which, resource) for c in every):
        return None
    sidecars = most = 0
    for container in pod.spec.initContainers:
        if container.restartPolicy == "Always":
            sidecars += amount(container)
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + amount(container))
    return max(most, sidecars + sum(amount(c) for c in pod.spec.containers))


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
    host = hostname(pod, node)
    files = {"/etc/hosts": hosts_file(pod, pod_ip, node), "/etc/hostname": f"{host}\n"}
    if node.resolv_conf:
        files["/etc/resolv.conf"] = node.resolv_conf
    return files


def hosts_file(pod: o.Pod, pod_ip: str, node: NodeFacts) -> str:
    """The kubelet's: the pod's names and aliases; on the node's network the node's own file with the aliases."""
    if pod.spec.hostNetwork and node.hosts:
        own = node.hosts if node.hosts.endswith("\n") else node.hosts + "\n"
        return own + _aliases(pod)
    short = node.name if pod.spec.hostNetwork else short_name(pod)
    names = f"{domain_name(pod)}\t{short}" if pod.spec.subdomain and not pod.spec.hostNetwork else short
    return HOSTS + (f"{pod_ip}\t{names}\n" if pod_ip else "") + _aliases(pod)


def _aliases(pod: o.Pod) -> str:
    return "".join(f"{alias.ip}\t{chr(9).join(alias.hostnames)}\n" for alias in pod.spec.hostAliases)
