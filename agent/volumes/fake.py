"""Volumes in memory, for unit tests and the simulation: what was asked for, without a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.agent.volumes.port import EmptyDir, Prepared, VolumeFault, VolumeSpec


class FakeVolumes:
    """Outlives an agent's crash when the same object is given to the next one. `full` makes `prepare` fail."""

    def __init__(self) -> None:
        self.full = False
        self.pods: dict[str, dict[str, VolumeSpec]] = {}
        self.updates: list[tuple[str, VolumeSpec]] = []
        self.removed: list[str] = []
        self.used: dict[tuple[str, str], int] = {}  # pod uid and volume: bytes, as a test says
        self.written: dict[str, int] = {}  # folder of the node: bytes, as a test says

    async def prepare(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> Mapping[str, Prepared]:
        if self.full:
            raise VolumeFault("no space is left on the node's disk")
        self.pods.setdefault(pod_uid, {}).update({spec.name: spec for spec in specs})
        return {spec.name: Prepared(spec.name, f"/fake/volumes/{pod_uid}/{spec.name}") for spec in specs}

    async def update(self, pod_uid: str, specs: Sequence[VolumeSpec]) -> None:
        for spec in specs:
            if pod_uid in self.pods and self.pods[pod_uid].get(spec.name) != spec:
                self.pods[pod_uid][spec.name] = spec
                self.updates.append((pod_uid, spec))

    async def free(self, pod_uid: str) -> None:
        self.pods.pop(pod_uid, None)

    async def held(self) -> Sequence[str]:
        return list(self.pods)

    async def usage(self, pod_uid: str) -> Mapping[str, int]:
        specs = self.pods.get(pod_uid, {}).values()
        on_disk = [one.name for one in specs if isinstance(one.source, EmptyDir) and not one.source.memory]
        return {name: self.used.get((pod_uid, name), 0) for name in on_disk}

    async def measure(self, folders: Sequence[str]) -> int:
        return sum(self.written.get(folder, 0) for folder in folders)

    async def remove_local(self, name: str) -> None:
        self.removed.append(name)
