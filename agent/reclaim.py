"""Deletes the folders of persistent volumes that the cluster gives up, once no pod here uses them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from shoal.agent.objects import MemoryObjects
from shoal.agent.pods.machine import PodMachine
from shoal.agent.volumes.port import VolumeFault, Volumes
from shoal.proto.references import CLAIM, VOLUME_PROTECTION, Reference, references
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.agent.reclaim")
LOOK_AGAIN_S = 1.0  # while a pod still uses one, or a folder could not be deleted
DELETE = "Delete"


def given_up(volumes: Iterable[o.PersistentVolume]) -> Sequence[o.PersistentVolume]:
    """Those that are being deleted and whose folder is Shoal's own."""
    return [
        volume
        for volume in volumes
        if volume.metadata.HasField("deletionTimestamp")
        and VOLUME_PROTECTION not in volume.metadata.finalizers  # a claim still has it
        and volume.spec.persistentVolumeReclaimPolicy == DELETE
        and volume.spec.HasField("local")
        and not volume.spec.local.path
    ]


def in_use(volume: o.PersistentVolume, objects: MemoryObjects, pods: Iterable[o.Pod]) -> bool:
    """Whether one of the pods mounts it: by the claim that it is bound to, unless a new claim has that name."""
    owner = volume.spec.claimRef
    claim = objects.claim(owner.namespace, owner.name)
    if claim is not None and claim.spec.volumeName != volume.metadata.name:
        return False
    named = Reference(CLAIM, owner.namespace, owner.name)
    return any(named in references(pod) for pod in pods)


class Reclaimer:
    """`tell` hears the names whose folders are gone: again whenever such a volume is assigned anew."""

    def __init__(
        self,
        volumes: Volumes,
        objects: MemoryObjects,
        machines: Mapping[str, PodMachine],
        tell: Callable[[Sequence[str]], None],
    ) -> None:
        self._volumes = volumes
        self._objects = objects
        self._machines = machines
        self._tell = tell
        self._woken = asyncio.Event()

    def look(self) -> None:
        """Such volumes may have been assigned."""
        self._woken.set()

    async def run(self) -> None:
        told: set[str] = set()
        while True:
            if self._woken.is_set():
                self._woken.clear()
                told.clear()
            wanted = [volume for volume in given_up(self._objects.volumes()) if volume.metadata.name not in told]
            gone = [volume.metadata.name for volume in wanted if await self._remove(volume)]
            if gone:
                told.update(gone)
                self._tell(gone)
            await self._rest(LOOK_AGAIN_S if len(gone) < len(wanted) else None)

    async def _remove(self, volume: o.PersistentVolume) -> bool:
        pods = [machine.pod for machine in self._machines.values() if machine.holds_volumes]
        if in_use(volume, self._objects, pods):
            return False
        try:
            await self._volumes.remove_local(volume.metadata.name)
        except VolumeFault as fault:
            log.warning("the folder of PersistentVolume %s cannot be deleted yet: %s", volume.metadata.name, fault)
            return False
        log.info("the folder of PersistentVolume %s is deleted", volume.metadata.name)
        return True

    async def _rest(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
