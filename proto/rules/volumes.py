"""The rules for a pod's volumes and for where containers mount them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeAlias

from shoal.proto import names
from shoal.proto.errors import shorten
from shoal.proto.rules.base import Report, at_most, exactly_one, mode, normal, not_absolute, not_descending, say
from shoal.proto.rules.environment import VOLUME_FIELDS, field_ref, no_such, object_name, resource_ref
from shoal.proto.rules.resources import size
from shoal.proto.v1 import objects_pb2 as o

MAX_VOLUMES = 200
MAX_MOUNTS = 200
MAX_ITEMS = 1000
SOURCES = (
    "emptyDir",
    "hostPath",
    "configMap",
    "secret",
    "downwardAPI",
    "projected",
    "persistentVolumeClaim",
)
PROJECTIONS = ("configMap", "secret", "downwardAPI")
HOST_PATH_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
PROPAGATIONS = ("None", "HostToContainer", "Bidirectional")
Siblings: TypeAlias = Collection[str]  # the names of the pod's containers


# ---- volumes ----
def volumes(given: Collection[o.Volume], siblings: Siblings, path: str, report: Report) -> None:
    """A pod's volumes."""
    at_most(given, MAX_VOLUMES, path, report)
    seen: set[str] = set()
    for index, volume in enumerate(given):
        where = f"{path}[{index}]"
        if not volume.name:
            report(f"{where}.name", "is missing: name the volume")
        else:
            say(report, f"{where}.name", names.not_dns_label(volume.name))
            if volume.name in seen:
                report(f"{where}.name", f'"{volume.name}" is another volume\'s name too: names are unique in a pod')
            seen.add(volume.name)
        _volume(volume, siblings, where, report)


def _volume(volume: o.Volume, siblings: Siblings, path: str, report: Report) -> None:
    kind = exactly_one(volume, SOURCES, path, report)
    where = f"{path}.{kind}"
    if kind == "emptyDir":
        _empty_dir(volume.emptyDir, where, report)
    elif kind == "hostPath":
        host_path(volume.hostPath, where, report)
    elif kind == "configMap":
        object_name(volume.configMap.name, f"{where}.name", report)
        _files(volume.configMap, where, report)
    elif kind == "secret":
        object_name(volume.secret.secretName, f"{where}.secretName", report)
        _files(volume.secret, where, report)
    elif kind == "downwardAPI":
        mode(volume.downwardAPI.defaultMode, f"{where}.defaultMode", report)
        _told(volume.downwardAPI.items, siblings, f"{where}.items", report)
    elif kind == "projected":
        _projected(volume.projected, siblings, where, report)
    elif kind == "persistentVolumeClaim":
        object_name(volume.persistentVolumeClaim.claimName, f"{where}.claimName", report)


def _empty_dir(source: o.EmptyDirVolumeSource, path: str, report: Report) -> None:
    if source.medium.startswith("HugePages"):
        report(f"{path}.medium", "huge pages are not supported yet: use Memory, or leave it out")
    elif source.medium:
        say(report, f"{path}.medium", names.not_one_of(source.medium, ("Memory",)))
    if source.HasField("sizeLimit"):
        size(source.sizeLimit, f"{path}.sizeLimit", report, least=0)


def host_path(source: o.HostPathVolumeSource, path: str, report: Report) -> None:
    """A folder or file of the node."""
    say(report, f"{path}.path", not_absolute(source.path))
    if source.type:
        say(report, f"{path}.type", names.not_one_of(source.type, HOST_PATH_TYPES[1:]))


def _files(source: o.ConfigMapVolumeSource | o.SecretVolumeSource, path: str, report: Report) -> None:
    mode(source.defaultMode, f"{path}.defaultMode", report)
    _items(source.items, f"{path}.items", report)


def _items(items: Collection[o.KeyToPath], path: str, report: Report) -> None:
    at_most(items, MAX_ITEMS, path, report)
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        say(report, f"{where}.key", names.not_data_key(item.key) if item.key else "is missing: name the key")
        say(report, f"{where}.path", _not_file(item.path))
        mode(item.mode, f"{where}.mode", report)
    _distinct(((item.path, f"{path}[{index}].path") for index, item in enumerate(items)), report)


def _told(items: Collection[o.DownwardAPIVolumeFile], siblings: Siblings, path: str, report: Report) -> None:
    """Files with what the pod is told of itself."""
    at_most(items, MAX_ITEMS, path, report)
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        say(report, f"{where}.path", _not_file(item.path))
        mode(item.mode, f"{where}.mode", report)
        kind = exactly_one(item, ("fieldRef", "resourceFieldRef"), where, report)
        if kind == "fieldRef":
            field_ref(item.fieldRef, VOLUME_FIELDS, f"{where}.fieldRef", report)
        elif kind == "resourceFieldRef":
            resource_ref(item.resourceFieldRef, siblings, f"{where}.resourceFieldRef", report, named=True)
    _distinct(((item.path, f"{path}[{index}].path") for index, item in enumerate(items)), report)


def _projected(source: o.ProjectedVolumeSource, siblings: Siblings, path: str, report: Report) -> None:
    mode(source.defaultMode, f"{path}.defaultMode", report)
    at_most(source.sources, MAX_ITEMS, f"{path}.sources", report)
    paths: list[tuple[str, str]] = []
    for index, projection in enumerate(source.sources):
        where = f"{path}.sources[{index}]"
        kind = exactly_one(projection, PROJECTIONS, where, report)
        if kind is None:
            continue
        one = getattr(projection, kind)
        if kind == "downwardAPI":
            _told(one.items, siblings, f"{where}.{kind}.items", report)
        else:
            object_name(one.name, f"{where}.{kind}.name", report)
            _items(one.items, f"{where}.{kind}.items", report)
        # two items of one source have been told of already
        paths += {item.path: f"{where}.{kind}.items[{number}].path" for number, item in enumerate(one.items)}.items()
    _distinct(paths, report)


def _not_file(path: str) -> str | None:
    """The path of a file in a volume whose `..data` is our own."""
    wrong = not_descending(path)
    if wrong is None and path.startswith(".."):
        return f"{shorten(path)} must not begin with '..'"
    return wrong


def _distinct(paths: Iterable[tuple[str, str]], report: Report) -> None:
    seen: set[str] = set()
    for path, where in paths:
        place = normal(path) if path else ""
        if path and place in seen:
            report(where, f"{shorten(path)} is another item's path too: each file has one content")
        seen.add(place)


# ---- mounts ----
def mounts(container: o.Container, there: Collection[str], path: str, report: Report) -> None:
    """Where a container sees the pod's volumes, of which `there` are the names."""
    at_most(container.volumeMounts, MAX_MOUNTS, f"{path}.volumeMounts", report)
    seen: dict[str, str] = {}
    for index, mount in enumerate(container.volumeMounts):
        where = f"{path}.volumeMounts[{index}]"
        if not mount.name:
            report(f"{where}.name", "is missing: name one of the pod's volumes")
        elif mount.name not in there:
            report(f"{where}.name", no_such(mount.name, "volume", there))
        wrong = _not_target(mount.mountPath)
        say(report, f"{where}.mountPath", wrong)
        place = normal(mount.mountPath)
        if wrong is None and place in seen:
            report(f"{where}.mountPath", f'{shorten(place)} is where "{seen[place]}" is mounted: keep one')
        seen.setdefault(place, mount.name)
        _below(mount, where, report)
        _propagation(mount, container, where, report)


def _not_target(path: str) -> str | None:
    wrong = not_absolute(path)
    if wrong is not None:
        return wrong
    place = normal(path)
    if ":" in path:
        return f"{shorten(path)} must not have a ':'"
    if place == "/":
        return "must not be '/', as it would hide the whole image: choose a folder below it"
    if place == "/proc" or place.startswith("/proc/"):
        return f"{shorten(path)} is the kernel's own view of the container: mount it elsewhere, such as /host/proc"
    return None


def _below(mount: o.VolumeMount, path: str, report: Report) -> None:
    if mount.subPath and mount.subPathExpr:
        report(f"{path}.subPathExpr", "is given beside subPath: keep one of them")
    if mount.subPath:
        say(report, f"{path}.subPath", not_descending(mount.subPath))
    if mount.subPathExpr:
        say(report, f"{path}.subPathExpr", not_descending(mount.subPathExpr))
        if "`" in mount.subPathExpr:
            report(f"{path}.subPathExpr", "holds a backtick, which is not expanded: write $(NAME) of a variable")


def _propagation(mount: o.VolumeMount, container: o.Container, path: str, report: Report) -> None:
    if not mount.HasField("mountPropagation"):
        return
    say(report, f"{path}.mountPropagation", names.not_one_of(mount.mountPropagation, PROPAGATIONS))
    if mount.mountPropagation == "Bidirectional" and not container.securityContext.privileged:
        report(f"{path}.mountPropagation", "Bidirectional is for privileged containers only: use HostToContainer")
