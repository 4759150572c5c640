"""The part of `describe` that is about a container and what it mounts, in kubectl's words."""

from __future__ import annotations

from collections.abc import Iterator

from shoal.deploy.cli.printers.lines import Lines, line, listed, several, since
from shoal.deploy.cli.printers.text import NONE
from shoal.proto.v1 import objects_pb2 as o

PROBES = (("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe"))
HOOKS = (("PostStart", "postStart"), ("PreStop", "preStop"))
REFERENCES = (("config map", "configMap"), ("secret", "secret"))


def container_lines(container: o.Container, found: o.ContainerStatus | None, now: float, indent: int) -> Lines:
    """Its name at `indent`, all else two further; `found` is None for a template's."""
    yield f"{' ' * indent}{container.name}:" + (" (sidecar)" if container.restartPolicy == "Always" else "")
    inner = indent + 2
    yield line("Image", container.image, inner)
    if found is not None and found.containerID:
        yield line("Container ID", found.containerID, inner)
    if found is not None and found.imageID:
        yield line("Image ID", found.imageID, inner)
    ports = ", ".join(
        f"{p.containerPort}/{p.protocol or 'TCP'}" + (f" ({p.name})" if p.name else "") for p in container.ports
    )
    yield line("Ports", ports or NONE, inner)
    host = ", ".join(
        f"{p.hostIP + ':' if p.hostIP else ''}{p.hostPort}/{p.protocol or 'TCP'}" for p in container.ports if p.hostPort
    )
    if host:
        yield line("Host Ports", host, inner)
    for name, words in (("Command", container.command), ("Args", container.args)):
        if words:
            yield line(name, " ".join(words), inner)
    if found is not None:
        yield from _found(found, now, inner)
    for name, amounts in (("Limits", container.resources.limits), ("Requests", container.resources.requests)):
        if amounts:
            yield from several(name, {key: amounts[key].text for key in amounts}, inner)
    yield from _health(container, inner)
    yield from listed("Environment", [*_env_from(container), *(_env(e) for e in container.env)], inner)
    yield from listed("Mounts", [mount_text(m) for m in container.volumeMounts], inner)


def _found(found: o.ContainerStatus, now: float, indent: int) -> Lines:
    yield from _state("State", found.state, now, indent)
    if found.HasField("lastState"):
        yield from _state("Last State", found.lastState, now, indent)
    yield line("Ready", found.ready, indent)
    yield line("Restarts", found.restartCount, indent)


def _state(name: str, state: o.ContainerState, now: float, indent: int) -> Lines:
    if state.HasField("running"):
        yield line(name, f"Running, since {since(state.running.startedAt, now)}", indent)
    elif state.HasField("terminated"):
        ended = state.terminated
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.exitCode}"
        yield line(name, f"Terminated: {ended.reason or 'Error'}, {how}", indent)
        if ended.message:
            yield line("Message", ended.message, indent + 2)
        if ended.finishedAt.seconds:
            yield line("Ended", since(ended.finishedAt, now), indent + 2)
    elif state.HasField("waiting"):
        yield line(name, f"Waiting: {state.waiting.reason}", indent)
        if state.waiting.message:
            yield line("Message", state.waiting.message, indent + 2)


# ---- probes and hooks ----
def _health(container: o.Container, indent: int) -> Lines:
    for name, field in PROBES:
        if container.HasField(field):  # type: ignore[arg-type]
            yield line(name, probe_text(getattr(container, field)), indent)
    for name, field in HOOKS:
        if container.lifecycle.HasField(field):  # type: ignore[arg-type]
            yield line(name, _action(getattr(container.lifecycle, field)), indent)


def probe_text(probe: o.Probe) -> str:
    """http-get http://:8080/ delay=0s timeout=1s period=10s #success=1 #failure=3"""
    own = f" grace={probe.terminationGracePeriodSeconds}s" if probe.HasField("terminationGracePeriodSeconds") else ""
    times = f"delay={probe.initialDelaySeconds}s timeout={probe.timeoutSeconds}s period={probe.periodSeconds}s"
    return f"{_action(probe)} {times} #success={probe.successThreshold} #failure={probe.failureThreshold}{own}"


def _action(handler: o.Probe | o.LifecycleHandler) -> str:
    if handler.HasField("exec"):
        return f"exec [{' '.join(handler.exec.command)}]"
    if handler.HasField("httpGet"):
        get = handler.httpGet
        return f"http-get {(get.scheme or 'HTTP').lower()}://{get.host}:{_port(get.port)}/{get.path.lstrip('/')}"
    if handler.HasField("tcpSocket"):
        return f"tcp-socket {handler.tcpSocket.host}:{_port(handler.tcpSocket.port)}"
    if isinstance(handler, o.Probe):
        return f"grpc :{handler.grpc.port} {handler.grpc.service}".rstrip()
    return f"sleep {handler.sleep.seconds}s"


def _port(port: o.IntOrString) -> str:
    return port.text or str(port.number)


# ---- environment ----
def _env_from(container: o.Container) -> Iterator[str]:
    for source in container.envFrom:
        for what, field in (("config map", "configMapRef"), ("secret", "secretRef")):
            if source.HasField(field):  # type: ignore[arg-type]
                named = getattr(source, field)
                prefix = f" with prefix {source.prefix}" if source.prefix else ""
                yield f"all of {what} {named.name}{prefix}{_optional(named.optional)}"


def _env(variable: o.EnvVar) -> str:
    if not variable.HasField("valueFrom"):
        return f"{variable.name}={variable.value}"
    source = variable.valueFrom
    if source.HasField("fieldRef"):
        return f"{variable.name}: the pod's {source.fieldRef.fieldPath}"
    if source.HasField("resourceFieldRef"):
        return f"{variable.name}: {source.resourceFieldRef.resource}"
    secret = source.HasField("secretKeyRef")
    key = source.secretKeyRef if secret else source.configMapKeyRef
    what = "secret" if secret else "config map"
    return f"{variable.name}: key {key.key} of {what} {key.name}{_optional(key.optional)}"


def _optional(yes: bool) -> str:
    return " (optional)" if yes else ""


# ---- volumes ----
def mount_text(mount: o.VolumeMount) -> str:
    """/etc/page from page (ro)"""
    below = f"/{mount.subPath or mount.subPathExpr}" if mount.subPath or mount.subPathExpr else ""
    words = ["ro" if mount.readOnly else "rw"]
    if mount.mountPropagation not in ("", "None"):
        words.append(mount.mountPropagation)
    return f"{mount.mountPath} from {mount.name}{below} ({', '.join(words)})"


def volume_text(volume: o.Volume) -> str:
    """What a volume is, on one line."""
    if volume.HasField("emptyDir"):
        limit = f", at most {volume.emptyDir.sizeLimit.text}" if volume.emptyDir.HasField("sizeLimit") else ""
        return f"empty folder{' in memory' if volume.emptyDir.medium == 'Memory' else ''}{limit}"
    if volume.HasField("hostPath"):
        kind = f" ({volume.hostPath.type})" if volume.hostPath.type else ""
        return f"the node's {volume.hostPath.path}{kind}"
    if volume.HasField("configMap"):
        return f"config map {volume.configMap.name}{_optional(volume.configMap.optional)}"
    if volume.HasField("secret"):
        return f"secret {volume.secret.secretName}{_optional(volume.secret.optional)}"
    if volume.HasField("persistentVolumeClaim"):
        claim = volume.persistentVolumeClaim
        return f"claim {claim.claimName}{' (ro)' if claim.readOnly else ''}"
    if volume.HasField("downwardAPI"):
        return f"fields of the pod ({', '.join(item.path for item in volume.downwardAPI.items)})"
    return f"projected: {', '.join(_projection(one) for one in volume.projected.sources)}"


def _projection(source: o.VolumeProjection) -> str:
    for what, field in REFERENCES:
        if source.HasField(field):  # type: ignore[arg-type]
            named = getattr(source, field)
            return f"{what} {named.name}{_optional(named.optional)}"
    return f"fields of the pod ({', '.join(item.path for item in source.downwardAPI.items)})"
