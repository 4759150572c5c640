"""What the agent says about its node: capacity, addresses, images, conditions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.agent.images.port import Image, ImageFault, Images
from shoal.agent.machine import Capacity, Machine
from shoal.proto import quantity
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.v1 import session_pb2 as s

log = logging.getLogger("shoal.agent.node")
RUNTIME_NAME = "shoal"
MAX_IMAGES = 200  # in a report; Kubernetes' nodeStatusMaxImages is 50
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the node keeps for itself: taken off capacity to give allocatable."""

    milli_cpu: int = 0
    memory_bytes: int = 0
    ephemeral_storage_bytes: int = 0
    pids: int = 0


@dataclass(slots=True)
class NodeReporter:
    """Builds the node's report from what the ports last said."""

    machine: Machine
    images: Images
    address: str
    version: str
    metrics_port: int = 0
    reserved: Reserved = field(default_factory=Reserved)
    devices: Mapping[str, int] = field(default_factory=dict)  # extended resources
    runtime_fault: str = ""
    network_fault: str = ""
    pressures: Sequence[o.Condition] = ()
    _images: Sequence[Image] = ()

    async def refresh_images(self) -> None:
        """Lists the images anew; the report follows."""
        try:
            self._images = await self.images.list()
        except ImageFault as fault:
            log.error("the images of this node cannot be listed: %s", fault.message)

    def report(self) -> s.NodeReport:
        info = self.machine.info()
        capacity = self._amounts(Reserved())
        return s.NodeReport(
            capacity=capacity,
            allocatable=self._amounts(self.reserved),
            addresses=[
                o.NodeAddress(type="InternalIP", address=self.address),
                o.NodeAddress(type="Hostname", address=info.hostname),
            ],
            info=o.NodeSystemInfo(
                machineID=info.machine_id,
                bootID=info.boot_id,
                kernelVersion=info.kernel,
                osImage=info.os_image,
                containerRuntimeVersion=f"{RUNTIME_NAME}://{self.version}",
                kubeletVersion=self.version,
                operatingSystem="linux",
                architecture=info.architecture,
            ),
            images=self._image_list(),
            conditions=[
                _condition("RuntimeReady", self.runtime_fault, "RuntimeNotReady"),
                _condition("NetworkReady", self.network_fault, "NetworkNotReady"),
                *self.pressures,
            ],
            metrics_port=self.metrics_port,
        )

    def _amounts(self, less: Reserved) -> Mapping[str, o.Quantity]:
        capacity = self.machine.capacity()
        left = allocatable(capacity, less)
        storage = left["ephemeral-storage"]
        texts = {
            "cpu": quantity.of_milli(left["cpu"]),
            "memory": quantity.of_bytes(left["memory"]),
            "pods": str(capacity.pods),
            "ephemeral-storage": quantity.of_bytes(storage - storage % MIB),  # free space moves by bytes all the time
        }
        texts |= {name: str(count) for name, count in self.devices.items()}
        return {name: o.Quantity(text=text) for name, text in texts.items()}

    def _image_list(self) -> list[o.ContainerImage]:
        """The largest first, as the kubelet lists them; by id where sizes are equal."""
        chosen = sorted(self._images, key=lambda image: (-image.size, image.id))[:MAX_IMAGES]
        return [o.ContainerImage(names=[*image.names, image.digest], sizeBytes=image.size) for image in chosen]


def allocatable(capacity: Capacity, reserved: Reserved) -> dict[str, int]:
    """What is left for pods: cpu in thousandths, the rest in bytes."""
    return {
        "cpu": max(capacity.milli_cpu - reserved.milli_cpu, 0),
        "memory": max(capacity.memory_bytes - reserved.memory_bytes, 0),
        "ephemeral-storage": max(capacity.ephemeral_storage_bytes - reserved.ephemeral_storage_bytes, 0),
    }


def _condition(kind: str, fault: str, reason: str) -> o.Condition:
    if fault:
        return o.Condition(type=kind, status="False", reason=reason, message=fault)
    return o.Condition(type=kind, status="True")
