"""Looks after what pods write to the node's disk, and ends those that take more than their limits allow.

The rules and the words are the kubelet's (eviction_manager.go, localStorageEviction): an emptyDir's sizeLimit, a
container's ephemeral-storage limit on its own files and logs, and all of them together on the whole pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal.agent.pods import instructions as i
from shoal.agent.pods.machine import PodMachine
from shoal.agent.pods.spec import amounts
from shoal.agent.pods.status import TERMINAL
from shoal.agent.pods.volumes import kind_of, size_limit
from shoal.agent.volumes.port import VolumeFault, Volumes
from shoal.proto import quantity
from shoal.proto.v1 import objects_pb2 as o

log = logging.getLogger("shoal.agent.storage")
RESOURCE = "ephemeral-storage"
EVICTED = "Evicted"
GRACE_S = 1.0  # the disk fills on: the kubelet's immediate eviction has as much
LEAST_REST_S, IDLE_REST_S, MOST_REST_S = 1.0, 2.0, 60.0  # idle: no pod has a limit
REST_FACTOR = 30  # rests, for each second that a round has taken: at most 3 % of the time goes into looking


@dataclass(frozen=True, slots=True)
class Folders:
    """Where pods write besides their volumes: `logs`/<uid>/<container>, `runs`/<uid>/work/<container>-<attempt>."""

    logs: str
    runs: str

    def of(self, uid: str, container: str, attempt: int) -> Sequence[str]:
        return f"{self.logs}/{uid}/{container}", f"{self.runs}/{uid}/work/{container}-{attempt}"


def limited_volumes(pod: o.Pod) -> dict[str, int]:
    """The emptyDirs on disk that have a limit."""
    empty = (one for one in pod.spec.volumes if kind_of(one) == "emptyDir" and one.emptyDir.medium != "Memory")
    return {one.name: limit for one in empty if (limit := size_limit(one))}


def container_limits(pod: o.Pod) -> dict[str, int]:
    """The containers that have a limit on their own files and logs."""
    every = (*pod.spec.initContainers, *pod.spec.containers)
    return {one.name: limit for one in every if (limit := amounts(one, "limits", RESOURCE))}


def pod_limit(pod: o.Pod) -> int:
    """On everything of the pod: the sum of its containers' limits; 0 when one of them has none."""
    limits = [amounts(one, "limits", RESOURCE) or 0 for one in pod.spec.containers]
    return sum(limits) if limits and all(limits) else 0


def verdict(pod: o.Pod, volumes: Mapping[str, int], containers: Mapping[str, int]) -> str:
    """Why the pod has to go, "" when it may stay; both tables hold bytes on disk by name."""
    for name, limit in limited_volumes(pod).items():
        if volumes.get(name, 0) > limit:
            return f'Usage of EmptyDir volume "{name}" exceeds the limit "{_written(pod, name)}".'
    for name, limit in container_limits(pod).items():
        if containers.get(name, 0) > limit:
            return f'Container {name} exceeded its local ephemeral storage limit "{quantity.of_bytes(limit)}".'
    most = pod_limit(pod)
    if most and sum(volumes.values()) + sum(containers.values()) > most:
        text = quantity.of_bytes(most)
        return f"Pod ephemeral local storage usage exceeds the total limit of containers {text}."
    return ""


def _written(pod: o.Pod, name: str) -> str:
    return next(volume.emptyDir.sizeLimit.text for volume in pod.spec.volumes if volume.name == name)


class StorageWatch:
    """Asks at most as often as it is cheap; a node without limited pods is hardly looked at."""

    def __init__(
        self,
        volumes: Volumes,
        machines: Mapping[str, PodMachine],
        post: Callable[[str, i.Event], None],
        folders: Folders,
    ) -> None:
        self._volumes = volumes
        self._machines = machines
        self._post = post
        self._folders = folders

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            limited = self._limited()
            for machine in limited:
                await self._look(machine)
            least = LEAST_REST_S if limited else IDLE_REST_S
            await asyncio.sleep(min(max((clock() - begun) * REST_FACTOR, least), MOST_REST_S))

    def _limited(self) -> Sequence[PodMachine]:
        return [
            machine
            for machine in self._machines.values()
            if not (machine.ended or machine.stopping or machine.phase in TERMINAL)
            and (limited_volumes(machine.pod) or container_limits(machine.pod))
        ]

    async def _look(self, machine: PodMachine) -> None:
        try:
            volumes = await self._volumes.usage(machine.uid)
            containers = await self._containers(machine)
        except VolumeFault as fault:
            log.warning("what pod %s has on disk is not known: %s", machine.uid, fault)
            return
        why = verdict(machine.pod, volumes, containers)
        if why:
            meta = machine.pod.metadata
            log.warning("pod %s/%s is evicted: %s", meta.namespace, meta.name, why)
            self._post(machine.uid, i.GiveUp(EVICTED, why, GRACE_S))

    async def _containers(self, machine: PodMachine) -> dict[str, int]:
        """Only where there is a limit: else nobody asks."""
        limits = container_limits(machine.pod)
        found = {}
        for container in machine.containers():
            name, run = container.spec.name, container.run
            if name in limits and run is not None:
                found[name] = await self._volumes.measure(self._folders.of(machine.uid, name, run.attempt))
        return found
