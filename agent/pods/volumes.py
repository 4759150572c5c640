"""From a pod and what it refers to: its volumes, and where its containers mount them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.agent.objects import Objects
from shoal.agent.pods import downward
from shoal.agent.pods.config import Unresolved, absent, container_path, find, no_key
from shoal.agent.pods.spec import NodeFacts, TooLong, amounts, expand, references_in
from shoal.agent.runtime.port import Mount
from shoal.agent.volumes.port import EmptyDir, File, Files, HostPath, Local, Missing, Prepared, VolumeSource, VolumeSpec
from shoal.proto import quantity
from shoal.proto.references import CONFIG_MAP, SECRET
from shoal.proto.v1 import objects_pb2 as o

FAILED_MOUNT, CREATING = "FailedMount", "ContainerCreating"
DEFAULT_MODE = 0o644
MAX_FILES_BYTES = 32 << 20  # of one volume of files: they lie in the node's memory, or on its disk, and nobody counts
FILES = ("configMap", "secret", "downwardAPI", "projected")  # kinds that containers never write to
Table = dict[str, File]  # relative path -> file


def volume_specs(pod: o.Pod, objects: Objects, node: NodeFacts, pod_ip: str) -> list[VolumeSpec]:
    """What is to be prepared for the pod, in the manifest's order. Raises Unresolved."""
    return [
        _spec(pod, volume, f"spec.volumes[{number}]", objects, node, pod_ip)
        for number, volume in enumerate(pod.spec.volumes)
    ]


def _spec(pod: o.Pod, volume: o.Volume, field: str, objects: Objects, node: NodeFacts, pod_ip: str) -> VolumeSpec:
    kind = kind_of(volume)
    field = f"{field}.{kind}"
    source: VolumeSource
    if kind == "emptyDir":
        source = _empty_dir(pod, volume.emptyDir, node)
    elif kind == "hostPath":
        source = HostPath(volume.hostPath.path, volume.hostPath.type)
    elif kind == "persistentVolumeClaim":
        source = _persistent(pod, volume.persistentVolumeClaim, objects, field)
    else:
        table, is_secret = _files(pod, volume, objects, node, pod_ip, field)
        source = Files(_checked(table, field), is_secret)
    context = pod.spec.securityContext
    owned = context.HasField("fsGroup") and not isinstance(source, HostPath)
    return VolumeSpec(
        volume.name,
        source,
        read_only=is_read_only(volume),
        fs_group=context.fsGroup if owned else None,
        fs_group_always=context.fsGroupChangePolicy != "OnRootMismatch",
    )


def kind_of(volume: o.Volume) -> str:
    """The manifest's word for the volume's source; one without any is an emptyDir."""
    return next((field.name for field, _ in volume.ListFields() if field.name != "name"), "emptyDir")


def is_read_only(volume: o.Volume) -> bool:
    return kind_of(volume) in FILES or volume.persistentVolumeClaim.readOnly


def size_limit(volume: o.Volume) -> int:
    """An emptyDir's, in bytes; 0 for none."""
    text = volume.emptyDir.sizeLimit.text
    return quantity.whole(text) if text else 0


def _empty_dir(pod: o.Pod, source: o.EmptyDirVolumeSource, node: NodeFacts) -> EmptyDir:
    """In memory it is never larger than what the pod, or the node, may use (the kubelet's size of tmpfs volumes)."""
    limit = quantity.whole(source.sizeLimit.text) if source.sizeLimit.text else 0
    if source.medium != "Memory":
        return EmptyDir(size_bytes=limit)
    bounds = (limit, _pod_memory(pod), node.allocatable.get("memory", 0))
    return EmptyDir(memory=True, size_bytes=min((bound for bound in bounds if bound), default=0))


def _pod_memory(pod: o.Pod) -> int:
    """The sum of the containers' memory limits; 0 when one has none."""
    limits = [amounts(container, "limits", "memory") or 0 for container in pod.spec.containers]
    return sum(limits) if all(limits) else 0


def _persistent(
    pod: o.Pod, source: o.PersistentVolumeClaimVolumeSource, objects: Objects, field: str
) -> Local | HostPath:
    title = f"PersistentVolumeClaim {pod.metadata.namespace}/{source.claimName}"
    claim = objects.claim(pod.metadata.namespace, source.claimName)
    if claim is None:
        raise _held(f"{title} {absent(objects)}", field)
    name = claim.spec.volumeName
    if not name:
        raise Unresolved(Missing(f"{title} is not bound to a volume yet", field, CREATING))  # the master sees to it
    volume = objects.volume(name)
    if volume is None:
        raise _held(f"{title} is bound to PersistentVolume {name}, which is not on this node", field)
    owner = volume.spec.claimRef
    if owner.uid and owner.uid != claim.metadata.uid:
        raise _held(f"PersistentVolume {name} belongs to another claim, {owner.namespace}/{owner.name}", field)
    if volume.spec.HasField("hostPath"):
        return HostPath(volume.spec.hostPath.path, volume.spec.hostPath.type)
    return Local(name, volume.spec.local.path)


def _held(what: str, field: str) -> Unresolved:
    return Unresolved(Missing(what, field, FAILED_MOUNT))


# ---- volumes of files ----
def _files(
    pod: o.Pod, volume: o.Volume, objects: Objects, node: NodeFacts, pod_ip: str, field: str
) -> tuple[Table, bool]:
    """The files, and whether one of them is secret."""
    config, secret, down = volume.configMap, volume.secret, volume.downwardAPI
    match kind_of(volume):
        case "configMap":
            mode = _mode(config)
            return _keys(pod, CONFIG_MAP, config.name, config.items, objects, mode, field, config.optional), False
        case "secret":
            mode = _mode(secret)
            return _keys(pod, SECRET, secret.secretName, secret.items, objects, mode, field, secret.optional), True
        case "downwardAPI":
            return _downward(pod, down.items, node, pod_ip, _mode(down), field), False
        case _:
            return _projected(pod, volume.projected, objects, node, pod_ip, field)


def _mode(source: o.ConfigMapVolumeSource | o.SecretVolumeSource | o.DownwardAPIVolumeSource) -> int:
    return source.defaultMode if source.HasField("defaultMode") else DEFAULT_MODE


def _projected(
    pod: o.Pod, source: o.ProjectedVolumeSource, objects: Objects, node: NodeFacts, pod_ip: str, field: str
) -> tuple[Table, bool]:
    """All sources in one folder; where two have the same path the later wins."""
    mode = source.defaultMode if source.HasField("defaultMode") else DEFAULT_MODE
    table: Table = {}
    for number, one in enumerate(source.sources):
        where = f"{field}.sources[{number}]"
        config, secret = one.configMap, one.secret
        if one.HasField("configMap"):
            where = f"{where}.configMap"
            table |= _keys(pod, CONFIG_MAP, config.name, config.items, objects, mode, where, config.optional)
        elif one.HasField("secret"):
            where = f"{where}.secret"
            table |= _keys(pod, SECRET, secret.name, secret.items, objects, mode, where, secret.optional)
        else:
            table |= _downward(pod, one.downwardAPI.items, node, pod_ip, mode, f"{where}.downwardAPI")
    return table, any(one.HasField("secret") for one in source.sources)


def _keys(
    pod: o.Pod,
    kind: str,
    name: str,
    items: Sequence[o.KeyToPath],
    objects: Objects,
    mode: int,
    field: str,
    optional: bool,
) -> Table:
    """Every key as a file, or the chosen ones at their paths."""
    found = find(objects, kind, pod.metadata.namespace, name, field, optional=optional, reason=FAILED_MOUNT)
    if found is None:
        return {}
    if not items:
        return {key: File(content, mode) for key, content in found.data.items()}
    table: Table = {}
    for number, item in enumerate(items):
        if item.key in found.data:
            table[item.path] = File(found.data[item.key], item.mode if item.HasField("mode") else mode)
        elif not optional:
            raise no_key(found, item.key, f"{field}.items[{number}].key", FAILED_MOUNT)
    return table


def _downward(
    pod: o.Pod, items: Sequence[o.DownwardAPIVolumeFile], node: NodeFacts, pod_ip: str, mode: int, field: str
) -> Table:
    table: Table = {}
    for number, item in enumerate(items):
        try:
            if item.HasField("fieldRef"):
                text = downward.field(pod, item.fieldRef.fieldPath, node, pod_ip)
            else:
                text = downward.resource(pod, item.resourceFieldRef, node)
        except downward.NoSuchField as fault:
            raise _held(str(fault), f"{field}.items[{number}]") from fault
        table[item.path] = File(text.encode(), item.mode if item.HasField("mode") else mode)
    return table


def _checked(table: Table, field: str) -> Table:
    """No path leaves the volume, none is a file and a folder at once, and one key under many paths fills no node.
    Raises Unresolved."""
    size = sum(len(file.content) for file in table.values())
    if size > MAX_FILES_BYTES:
        raise _held(f"its files have {size >> 20} MiB together, at most {MAX_FILES_BYTES >> 20} are written", field)
    for path in table:
        parts = path.split("/")
        if not path or path.startswith(("/", "..")) or any(part in ("", ".", "..") for part in parts) or "\0" in path:
            raise _held(f"{path!r} cannot be a file's path in a volume: write a relative one without ..", field)
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        clash = next((folder for folder in above if folder in table), None)
        if clash is not None:
            raise _held(f"{clash} is a file, and {path} needs a folder there", field)
    return table


# ---- mounts ----
def mounts_of(
    pod: o.Pod, container: o.Container, prepared: Mapping[str, Prepared], env: Mapping[str, str]
) -> list[Mount]:
    """The container's mounts, parents before what lies in them. `env` is its environment. Raises Unresolved."""
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    where = container_path(pod, container)
    mounts = []
    for number, wanted in enumerate(container.volumeMounts):
        field = f"{where}.volumeMounts[{number}]"
        if wanted.name not in volumes or wanted.name not in prepared:
            raise Unresolved(Missing(f"volume {wanted.name!r} is not there", f"{field}.name"))
        sub_path = _sub_path(wanted, env, field)
        ready = prepared[wanted.name]
        if sub_path and ready.is_file:
            raise Unresolved(Missing(f"volume {wanted.name} is a file: nothing lies below it", f"{field}.subPath"))
        mounts.append(
            Mount(
                ready.path,
                wanted.mountPath,
                read_only=wanted.readOnly or is_read_only(volumes[wanted.name]),
                sub_path=sub_path,
                propagation=wanted.mountPropagation or "None",
            )
        )
    return sorted(mounts, key=lambda mount: len(_parts(mount.target)))


def _parts(path: str) -> Sequence[str]:
    return [part for part in path.split("/") if part]


def _sub_path(wanted: o.VolumeMount, env: Mapping[str, str], field: str) -> str:
    """subPath as it is written, subPathExpr with its variables; both stay inside the volume."""
    if not wanted.subPathExpr:
        return _inside(wanted.subPath, wanted.subPath, f"{field}.subPath")
    field = f"{field}.subPathExpr"
    unknown = [name for name in references_in(wanted.subPathExpr) if name not in env]
    if unknown:
        raise Unresolved(Missing(f"{wanted.subPathExpr!r} names {unknown[0]}, which the container has not", field))
    try:
        return _inside(expand(wanted.subPathExpr, env), wanted.subPathExpr, field)
    except TooLong as fault:
        raise Unresolved(Missing(str(fault), field)) from fault


def _inside(path: str, written: str, field: str) -> str:
    shown = repr(written) if path == written else f"{written!r} becomes {path!r}, which"
    why = (
        "is absolute"
        if path.startswith("/")
        else "leaves the volume"
        if ".." in path.split("/")
        else "has a backtick or a NUL in it"
        if "`" in path or "\0" in path
        else ""
    )
    if why:
        raise Unresolved(Missing(f"{shown} {why}: write a relative path inside the volume", field))
    return path
