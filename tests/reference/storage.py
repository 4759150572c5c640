"""Claims and volumes, plainly. The storage classes are `made` (on demand), `disks` (by hand, waiting) and `now`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ELSEWHERE = "node(s) did not have the volume of a claim"
Users = Mapping[str, set[str]]  # claim -> nodes of the pods that use it


@dataclass
class Claim:
    """`volume`: bound to it; `tied`: the node that it was given. Sizes are whole numbers."""

    storage_class: str
    mode: str = "ReadWriteOnce"
    size: int = 1
    volume: str = ""
    tied: str = ""
    leaving: bool = False


@dataclass
class Volume:
    storage_class: str
    homes: set[str]  # empty: everywhere
    size: int = 1
    claim: str = ""  # that has it


@dataclass
class Storage:
    claims: dict[str, Claim] = field(default_factory=dict)  # namespace/name
    volumes: dict[str, Volume] = field(default_factory=dict)

    def blocked(self, names: Sequence[str], users: Users) -> str:
        """Why no pod with these claims can be placed anywhere; empty when that is not so."""
        return next((why for name in names if (why := self._blocked(name, users))), "")

    def _blocked(self, name: str, users: Users) -> str:
        claim, short = self.claims.get(name), name.split("/")[1]
        if claim is None:
            return f"claim {short} does not exist"
        if claim.leaving:
            return f"claim {short} is being deleted"
        if claim.mode == "ReadWriteOncePod" and users.get(name):
            return f"claim {short} is in use by another pod (ReadWriteOncePod)"
        if claim.volume:
            if claim.volume not in self.volumes:
                return f"the volume of claim {short} does not exist"
            return "" if self.volumes[claim.volume].claim == name else f"claim {short} is not bound yet"
        if claim.storage_class not in ("made", "disks"):
            return f"claim {short} is not bound yet"
        if claim.storage_class == "disks" and not claim.tied and not users.get(name):
            others = [n for n, c in self.claims.items() if n != name and c.storage_class == "disks" and not c.volume]
            if any(self.claims[n].tied or users.get(n) for n in others):
                return f"claim {short} waits until another claim of its class has its volume"
        return ""

    def reason(self, names: Sequence[str], node: str, users: Users) -> str:
        """Why this node is not for a pod with these claims, none of which is blocked."""
        for name in names:
            claim, at = self.claims[name], users.get(name)
            homes = self.volumes[claim.volume].homes if claim.volume else set()
            if homes and node not in homes:
                return ELSEWHERE
            shared = claim.mode == "ReadWriteMany" and claim.volume
            tied = at if at and not shared else {claim.tied} if claim.tied and not claim.volume else None
            if tied is not None and node not in tied:
                return ELSEWHERE
        return self._lacking(names, node, users)

    def _lacking(self, names: Sequence[str], node: str, users: Users) -> str:
        taken: set[str] = set()
        for name in names:
            claim = self.claims[name]
            if claim.volume or claim.tied or users.get(name) or claim.storage_class != "disks":
                continue
            fitting = [
                (volume.size, key)
                for key, volume in self.volumes.items()
                if not volume.claim and volume.storage_class == "disks" and volume.size >= claim.size
                if key not in taken and (not volume.homes or node in volume.homes)
            ]
            if not fitting:
                return f"no volume fits claim {name.split('/')[1]}"
            taken.add(min(fitting)[1])
        return ""
