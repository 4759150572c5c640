"""Pod security at admission: pods, and templates of pods, against the level of their namespace (pure)."""

from __future__ import annotations

from shoal.master.api.shapes import Shape
from shoal.master.model import Object, View
from shoal.proto import podsecurity
from shoal.proto.errors import FieldError
from shoal.proto.v1 import objects_pb2 as o


def problems(view: View, obj: Object, old: Object | None = None, shape: Shape | None = None) -> list[FieldError]:
    """What the namespace forbids of an object that is to be created; of a change only if it touches the pods' spec, so
    that what was allowed before can still be scaled or labelled. Kubernetes only warns about templates; but their
    pods could never be made. `shape` is the pod's, if it is known."""
    spec, path = _pods(obj)
    if spec is None or (old is not None and _pods(old)[0] == spec):
        return []
    namespace = view.get("Namespace", "", obj.metadata.namespace)
    if namespace is None:
        return []  # admission tells of that; its labels are not known
    level = podsecurity.level(namespace.metadata.labels)
    if shape is not None and level in shape.allowed:
        return []
    found = podsecurity.violations(spec, path, level)
    if shape is not None and not found:
        shape.allowed.add(level)
    return found


def _pods(obj: Object) -> tuple[o.PodSpec | None, str]:
    if isinstance(obj, o.Pod):
        return obj.spec, "spec"
    if isinstance(obj, o.Deployment | o.ReplicaSet):
        return obj.spec.template.spec, "spec.template.spec"
    return None, ""
