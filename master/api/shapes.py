"""Pod specs that were found sound a moment ago: replicas, and the pods of one call, mostly have the same one (pure).

What is remembered follows from the spec's bytes alone: its defaults, that it has no faults, and the levels of pod
security that allow it. Whatever depends on names, namespaces or other objects is looked at for each pod.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from shoal.master.model import Object
from shoal.proto.v1 import objects_pb2 as o

SHAPES = 1000
SHAPE_BYTES = 16_384  # a larger spec is not kept


@dataclass(slots=True)
class Shape:
    """`spec` with its defaults; nobody changes it."""

    spec: o.PodSpec
    allowed: set[str] = field(default_factory=set)  # by these levels


class Shapes:
    """The most recently used ones, by the bytes that were sent."""

    def __init__(self, most: int = SHAPES) -> None:
        self._most = most
        self._found: OrderedDict[bytes, Shape] = OrderedDict()

    def key(self, obj: Object) -> bytes | None:
        """None for what has no shape."""
        if not isinstance(obj, o.Pod):
            return None
        key = obj.spec.SerializeToString(deterministic=True)
        return key if len(key) <= SHAPE_BYTES else None

    def find(self, key: bytes | None) -> Shape | None:
        shape = self._found.get(key) if key is not None else None
        if key is not None and shape is not None:
            self._found.move_to_end(key)
        return shape

    def remember(self, key: bytes, shape: Shape) -> None:
        self._found[key] = shape
        while len(self._found) > self._most:
            self._found.popitem(last=False)
