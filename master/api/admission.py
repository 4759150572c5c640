"""What happens to an object before it is committed: the server's own fields, defaults, validation (pure)."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from shoal.master import volumes
from shoal.master.api import placement, podsecurity
from shoal.master.api.faults import Forbidden, Invalid, invalid_object
from shoal.master.api.shapes import Shape, Shapes
from shoal.master.controllers import priorities
from shoal.master.model import CLUSTER_SCOPED, KINDS, Conflict, Key, NotFound, Object, TooLarge, View, key_of
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.proto import known
from shoal.proto.defaults import apply_defaults
from shoal.proto.errors import FieldError
from shoal.proto.kinds import Plain
from shoal.proto.references import LOCAL_FINALIZER, VOLUME_PROTECTION
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.validation import validate, validate_update

OBJECTS = 100  # in one request
OBJECT_BYTES = (1 << 20) + (320 << 10)  # 1 MiB of data, 256 KiB of annotations, and the rest; etcd takes 1.5 MiB
REQUEST_ID_CHARACTERS = 128
DEFAULT_NAMESPACE = "default"
SYSTEM_NAMESPACE = "shoal-system"
MAX_REVISION_DIGITS = 18
STATUS_BY_AGENT = frozenset({"Pod", "Node"})  # one writer each, beside the master's loops
UIDS = uuid.UUID("6d9f4f8c-1b6e-5f0e-9c53-0a5f6a1c9a11")  # the name space of uids that derive from request ids
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes': no vowels, so no words
SUFFIX_CHARACTERS = 5


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes one object of one request unique, and when it came."""

    request_id: str
    index: int
    now: float

    def uid(self, obj: Object) -> uuid.UUID:
        """The same for each retry; another for another object, also when a client uses a request id twice."""
        meta = obj.metadata
        name = meta.name or f"{meta.generateName}*"
        return uuid.uuid5(UIDS, f"{self.request_id}/{self.index}/{obj.kind}/{meta.namespace}/{name}")


def check_request(request_id: str, count: int) -> None:
    """Raises Invalid."""
    if not request_id or len(request_id) > REQUEST_ID_CHARACTERS:
        raise Invalid(
            f"request_id must have 1 to {REQUEST_ID_CHARACTERS} characters: make a random one for each change, and "
            f"send the same with each retry"
        )
    if not 1 <= count <= OBJECTS:
        raise Invalid(f"a request holds 1 to {OBJECTS} objects, this one {count}: split it")


def check_kind(kind: str) -> None:
    """Raises Invalid."""
    if kind not in KINDS:
        raise Invalid(f"no kind {kind[:60]!r} here: there are {', '.join(KINDS)}")


def decode(envelope: c.Object) -> Object:
    """The message in the envelope, with its kind and namespace filled in. Raises Invalid, TooLarge."""
    check_kind(envelope.kind)
    if len(envelope.body) > OBJECT_BYTES:
        raise TooLarge(f"the {envelope.kind} has {len(envelope.body)} bytes: at most {OBJECT_BYTES} are stored")
    message = KINDS[envelope.kind]()
    try:
        message.MergeFromString(envelope.body)
    except DecodeError as error:
        raise Invalid(f"the body is no {envelope.kind} message: {error}") from None
    if message.kind not in ("", envelope.kind):
        raise Invalid(f"the envelope says {envelope.kind}, the object in it {message.kind[:60]!r}")
    message.kind = envelope.kind
    message.apiVersion = message.apiVersion or known.API_VERSIONS[envelope.kind]
    if envelope.kind not in CLUSTER_SCOPED and not message.metadata.namespace:
        message.metadata.namespace = DEFAULT_NAMESPACE
    return message


def precondition(envelope: c.Object, message: Object) -> int:
    """The resourceVersion at which the stored object must be, 0 for any: the envelope's, or the one that the object
    carries, as one that was read, edited and sent back does. Raises Invalid."""
    text = message.metadata.resourceVersion
    if envelope.revision or not text:
        return envelope.revision
    if not text.isdecimal() or len(text) > MAX_REVISION_DIGITS:
        raise Invalid(f"metadata.resourceVersion {text[:40]!r} is no revision: leave it out, or send what was read")
    return int(text)


def normal_key(key: c.Key) -> Key:
    """A key as the store has it. Raises Invalid."""
    check_kind(key.kind)
    if not key.name:
        raise Invalid(f"which {key.kind}? The name is missing")
    if key.kind in CLUSTER_SCOPED:
        return Key(key.kind, "", key.name)
    return Key(key.kind, key.namespace or DEFAULT_NAMESPACE, key.name)


def prepare_create(
    view: View,
    obj: Object,
    stamp: Stamp,
    profiles: Collection[str] = tuple(BUILT_IN),
    shapes: Shapes | None = None,
) -> None:
    """Turns what was sent into what is stored, in place; `profiles` are those of the scheduler, `shapes` those that
    are known to be sound. Raises Fault."""
    _refuse_certificates(obj)
    meta = obj.metadata
    uid = stamp.uid(obj)
    if not meta.name and meta.generateName:
        meta.name = meta.generateName[: 63 - SUFFIX_CHARACTERS] + _suffix(uid)
    _clear_servers_fields(obj)
    if isinstance(obj, o.Pod):
        placement.keep_devices(None, obj)
    wrong, shape = _completed(view, obj, shapes)
    problems = [*wrong, *_creation_problems(view, obj), *podsecurity.problems(view, obj, shape=shape)]
    problems += placement.problems(view, obj, profiles)
    if problems:
        raise invalid_object(str(key_of(obj)), problems)
    _check_namespace(view, obj)
    meta.uid = str(uid)
    meta.generation = 1
    meta.creationTimestamp.seconds = int(stamp.now)
    if isinstance(obj, o.Node):
        placement.cordon(obj, None, stamp.now)
    _first_status(obj)
    _check_size(obj)


def _completed(view: View, obj: Object, shapes: Shapes | None) -> tuple[list[FieldError], Shape | None]:
    """Fills in the defaults; what is wrong with the object in itself, and the shape of a pod whose spec is sound."""
    key = shapes.key(obj) if shapes is not None else None
    if shapes is None or key is None or not isinstance(obj, o.Pod):
        apply_defaults(obj)
        _prepare_storage(view, obj)
        return validate(obj), None
    if (shape := shapes.find(key)) is not None:
        obj.spec.CopyFrom(shape.spec)
        return validate(obj, sound_spec=True), shape
    apply_defaults(obj)
    if problems := validate(obj):
        return problems, None
    shape = Shape(o.PodSpec.FromString(obj.spec.SerializeToString()))
    shapes.remember(key, shape)
    return [], shape


def _refuse_certificates(obj: Object) -> None:
    if isinstance(obj, o.Death):
        raise Forbidden("a Death is written by the node where a container died: it can be read and deleted only")


def _prepare_storage(view: View, obj: Object) -> None:
    """What claims and volumes get when they are made: a class, and protection while they are in use."""
    finalizers = obj.metadata.finalizers
    if isinstance(obj, o.PersistentVolumeClaim):
        classes = (found for found in view.all("StorageClass") if isinstance(found, o.StorageClass))
        if not obj.spec.HasField("storageClassName") and (found := volumes.default_class(classes)) is not None:
            obj.spec.storageClassName = found.metadata.name
        if volumes.CLAIM_PROTECTION not in finalizers:
            finalizers.append(volumes.CLAIM_PROTECTION)
    elif isinstance(obj, o.PersistentVolume):
        wanted = [VOLUME_PROTECTION, *([LOCAL_FINALIZER] if volumes.ours(obj) else [])]
        finalizers.extend(name for name in wanted if name not in finalizers)


def _clear_servers_fields(obj: Object) -> None:
    """What only the server says: silently dropped, as users re-create objects from `get -o yaml`."""
    meta = obj.metadata
    meta.resourceVersion = ""
    meta.uid = ""
    for name in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        meta.ClearField(name)
    if not isinstance(obj, Plain):
        obj.ClearField("status")


def _creation_problems(view: View, obj: Object) -> list[tuple[str, str]]:
    if isinstance(obj, o.Node) and obj.spec.podCIDR:
        return [("spec.podCIDR", "is given by the master: leave it out")]
    if isinstance(obj, o.Pod) and obj.spec.nodeName and view.get("Node", "", obj.spec.nodeName) is None:
        return [("spec.nodeName", f"there is no node {obj.spec.nodeName!r}: leave it out and the scheduler finds one")]
    return []


def _check_namespace(view: View, obj: Object) -> None:
    if obj.kind in CLUSTER_SCOPED:
        return
    namespace = view.get("Namespace", "", obj.metadata.namespace)
    if namespace is None:
        raise NotFound(f"namespace {obj.metadata.namespace!r} not found: create it first")
    if namespace.metadata.HasField("deletionTimestamp"):
        raise Forbidden(f"namespace {obj.metadata.namespace!r} is being deleted: nothing new can be made in it")


def _first_status(obj: Object) -> None:
    if isinstance(obj, o.Pod):
        priorities.begin(obj)
    elif isinstance(obj, o.Namespace):
        obj.status.phase = "Active"
    elif isinstance(obj, o.PersistentVolumeClaim | o.PersistentVolume):
        obj.status.phase = "Pending"


def _check_size(obj: Object) -> None:
    if (size := obj.ByteSize()) > OBJECT_BYTES:
        raise TooLarge(f"{key_of(obj)} has {size} bytes: at most {OBJECT_BYTES} are stored")


def prepare_update(
    view: View, old: Object, new: Object, now: float, profiles: Collection[str] = tuple(BUILT_IN)
) -> None:
    """Turns `new` into the successor of `old`, in place: equal to it when nothing was changed. Raises Fault."""
    _refuse_certificates(old)
    key = key_of(old)
    if new.metadata.uid and new.metadata.uid != old.metadata.uid:
        raise Conflict(f"{key} is another object now (uid {old.metadata.uid}, not {new.metadata.uid}): read it again")
    _keep_servers_fields(old, new)
    apply_defaults(new)
    if isinstance(new, o.Node) and isinstance(old, o.Node):
        placement.cordon(new, old, now)
    problems = [*validate_update(old, new), *_late_finalizers(old, new), *podsecurity.problems(view, new, old)]
    problems += placement.problems(view, new, profiles, old)
    if problems:
        raise invalid_object(str(key), problems)
    if has_spec(new) and _spec(new) != _spec(old):
        new.metadata.generation = old.metadata.generation + 1
    _check_size(new)


def _keep_servers_fields(old: Object, new: Object) -> None:
    meta = new.metadata
    meta.resourceVersion = ""
    meta.uid, meta.generation = old.metadata.uid, old.metadata.generation
    meta.generateName = old.metadata.generateName
    for name in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        meta.ClearField(name)
    meta.creationTimestamp.CopyFrom(old.metadata.creationTimestamp)
    if old.metadata.HasField("deletionTimestamp"):
        meta.deletionTimestamp.CopyFrom(old.metadata.deletionTimestamp)
    if old.metadata.HasField("deletionGracePeriodSeconds"):
        meta.deletionGracePeriodSeconds = old.metadata.deletionGracePeriodSeconds
    copy_status(old, new)
    if isinstance(new, o.Node) and isinstance(old, o.Node) and not new.spec.podCIDR:
        new.spec.podCIDR = old.spec.podCIDR
    if isinstance(new, o.Pod) and isinstance(old, o.Pod) and not new.spec.nodeName:
        new.spec.nodeName = old.spec.nodeName
    if isinstance(new, o.Pod) and isinstance(old, o.Pod):
        placement.keep_priority(old, new)
        placement.keep_devices(old, new)


def copy_status(source: Object, target: Object) -> None:
    """Both of one kind; kinds without a status stay as they are."""
    if isinstance(source, Plain) or isinstance(target, Plain):
        return
    target.ClearField("status")
    if source.HasField("status"):
        target.status.MergeFromString(source.status.SerializeToString())


def _late_finalizers(old: Object, new: Object) -> list[tuple[str, str]]:
    added = set(new.metadata.finalizers) - set(old.metadata.finalizers)
    if added and old.metadata.HasField("deletionTimestamp"):
        return [("metadata.finalizers", f"{', '.join(sorted(added))}: none can be added to an object that is deleted")]
    return []


def has_spec(obj: Object) -> bool:
    return not isinstance(obj, Plain)


def _spec(obj: Object) -> object:
    assert not isinstance(obj, Plain)
    return obj.spec


def _suffix(uid: uuid.UUID) -> str:
    number, letters = uid.int, ""
    for _ in range(SUFFIX_CHARACTERS):
        number, digit = divmod(number, len(SUFFIX_ALPHABET))
        letters += SUFFIX_ALPHABET[digit]
    return letters
