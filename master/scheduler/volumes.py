"""The volumes' part of the snapshot: where the volumes of a pod's claims are, or may come to be.

A claim that has no volume yet is tied to the node of the first pod that is placed with it: by the pod's hold at once,
by the claim's annotation once that is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shoal.master import volumes as rules
from shoal.master.model import Event
from shoal.master.volumes import SELECTED_NODE, Place
from shoal.proto.v1 import objects_pb2 as o

ELSEWHERE = "node(s) did not have the volume of a claim"
KINDS = frozenset({"PersistentVolumeClaim", "PersistentVolume", "StorageClass"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What a pod's claims say: `blocked` is why it fits nowhere; else each limit is (allowed nodes, reason why not
    the others), and `volumes` must be found free, all of them, on its node."""

    blocked: str = ""
    limits: tuple[tuple[frozenset[str], str], ...] = ()
    unmade: tuple[o.PersistentVolumeClaim, ...] = ()  # hand-made volumes are still to be chosen for these


@dataclass(slots=True)
class Volumes:
    """Committed claims, volumes and classes, and who uses which claim, as far as placed."""

    claims: dict[str, o.PersistentVolumeClaim] = field(default_factory=dict)  # namespace/name
    volumes: dict[str, o.PersistentVolume] = field(default_factory=dict)
    classes: dict[str, o.StorageClass] = field(default_factory=dict)
    _users: dict[str, dict[str, str]] = field(default_factory=dict)  # claim -> pod uid -> node
    _free: dict[str, set[str]] = field(default_factory=dict)  # class -> volumes that no claim has
    _choosing: dict[str, set[str]] = field(default_factory=dict)  # class -> claims with a node but without a volume

    def clone(self) -> Volumes:
        return Volumes(
            dict(self.claims),
            dict(self.volumes),
            dict(self.classes),
            {name: dict(users) for name, users in self._users.items()},
            {name: set(free) for name, free in self._free.items()},
            {name: set(choosing) for name, choosing in self._choosing.items()},
        )

    # ---- events ----
    def apply(self, event: Event) -> None:
        new = event.new.message if event.new else None
        if event.key.kind == "PersistentVolumeClaim":
            self._take_claim(f"{event.key.namespace}/{event.key.name}", new)
        elif event.key.kind == "PersistentVolume":
            self._take_volume(event.key.name, new)
        elif isinstance(new, o.StorageClass):
            self.classes[event.key.name] = new
        else:
            self.classes.pop(event.key.name, None)

    def _take_claim(self, name: str, new: object) -> None:
        old = self.claims.pop(name, None)
        if old is not None:
            self._choosing.get(old.spec.storageClassName, set()).discard(name)
        if isinstance(new, o.PersistentVolumeClaim):
            self.claims[name] = new
            if not new.spec.volumeName and SELECTED_NODE in new.metadata.annotations:
                self._choosing.setdefault(new.spec.storageClassName, set()).add(name)

    def _take_volume(self, name: str, new: object) -> None:
        old = self.volumes.pop(name, None)
        if old is not None:
            self._free.get(old.spec.storageClassName, set()).discard(name)
        if isinstance(new, o.PersistentVolume):
            self.volumes[name] = new
            if not new.spec.claimRef.uid:
                self._free.setdefault(new.spec.storageClassName, set()).add(name)

    # ---- pods ----
    def use(self, uid: str, node: str, claims: Iterable[str]) -> None:
        for claim in claims:
            self._users.setdefault(claim, {})[uid] = node

    def leave(self, uid: str, claims: Iterable[str]) -> None:
        for claim in claims:
            users = self._users.get(claim, {})
            users.pop(uid, None)
            if not users:
                self._users.pop(claim, None)

    # ---- what they say ----
    def rule(self, claims: Sequence[str]) -> Rule:
        """For a pod that uses these claims."""
        limits: list[tuple[frozenset[str], str]] = []
        unmade: list[o.PersistentVolumeClaim] = []
        for name in claims:
            claim = self.claims.get(name)
            if claim is None or (blocked := self._blocked(claim)):
                why = f"claim {name.partition('/')[2]} does not exist" if claim is None else blocked
                return Rule(why)
            users = frozenset(self._users.get(name, {}).values())
            if users and (not claim.spec.volumeName or _one_node(claim)):
                limits.append((users, ELSEWHERE))
            elif not claim.spec.volumeName and (selected := claim.metadata.annotations.get(SELECTED_NODE)):
                limits.append((frozenset({selected}), ELSEWHERE))
            elif not claim.spec.volumeName and not rules.provisions(self._class(claim)):
                unmade.append(claim)
        return Rule("", tuple(limits), tuple(unmade))

    def _class(self, claim: o.PersistentVolumeClaim) -> o.StorageClass | None:
        return self.classes.get(claim.spec.storageClassName)

    def _blocked(self, claim: o.PersistentVolumeClaim) -> str:
        """Why no pod can be placed with this claim now; empty when one can."""
        what, name = f"claim {claim.metadata.name}", rules.full_name(claim)
        users = self._users.get(name, {})
        if claim.metadata.HasField("deletionTimestamp"):
            return f"{what} is being deleted"
        if rules.ONCE_POD in claim.spec.accessModes and users:
            return f"{what} is in use by another pod (ReadWriteOncePod)"
        if claim.spec.volumeName:
            volume = self.volumes.get(claim.spec.volumeName)
            if volume is None:
                return f"the volume of {what} does not exist"
            return "" if rules.owned(volume, claim) else f"{what} is not bound yet"
        storage_class = self._class(claim)
        if not rules.waits(storage_class):
            return f"{what} is not bound yet"
        settled = users or SELECTED_NODE in claim.metadata.annotations
        if not settled and not rules.provisions(storage_class) and self._busy(claim):
            return f"{what} waits until another claim of its class has its volume"
        return ""

    def _busy(self, claim: o.PersistentVolumeClaim) -> bool:
        """Another claim may take the same hand-made volume: they are given out one after the other."""
        name = rules.full_name(claim)
        if self._choosing.get(claim.spec.storageClassName, set()) - {name}:
            return True
        return any(other != name and self._unbound_of(other, claim.spec.storageClassName) for other in self._users)

    def _unbound_of(self, name: str, storage_class: str) -> bool:
        claim = self.claims.get(name)
        return claim is not None and not claim.spec.volumeName and claim.spec.storageClassName == storage_class

    def reachable(self, claims: Sequence[str], place: Place) -> bool:
        """Whether the volumes that the claims have can be used on this node."""
        for name in claims:
            claim = self.claims.get(name)
            volume = self.volumes.get(claim.spec.volumeName) if claim is not None else None
            if volume is not None and not rules.reachable(volume, place):
                return False
        return True

    def missing(self, unmade: Sequence[o.PersistentVolumeClaim], place: Place) -> str:
        """The first claim for which no free volume is left on this node; empty when all have one."""
        taken: set[str] = set()
        for claim in unmade:
            names = self._free.get(claim.spec.storageClassName, set()) - taken
            found = rules.pick([self.volumes[name] for name in names], claim, place)
            if found is None:
                return f"no volume fits claim {claim.metadata.name}"
            taken.add(found.metadata.name)
        return ""

    def undecided(self, claims: Sequence[str]) -> list[o.PersistentVolumeClaim]:
        """The claims whose node is still to be written down once a pod is placed."""
        found = [self.claims[name] for name in claims if name in self.claims]
        return [c for c in found if not c.spec.volumeName and SELECTED_NODE not in c.metadata.annotations]


def _one_node(claim: o.PersistentVolumeClaim) -> bool:
    return not set(claim.spec.accessModes) & {"ReadWriteMany", "ReadOnlyMany"}
