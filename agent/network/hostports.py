"""Ports of the node that lead to pods: who holds which, on disk, and what contradicts."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from shoal.agent.network.port import HostPort, NetworkFault, PortTaken


def taken(held: Mapping[str, Sequence[HostPort]], uid: str, wanted: Sequence[HostPort]) -> tuple[HostPort, str] | None:
    """The first of the wanted ports that another pod holds, with that pod's uid. The same port of two addresses is two
    ports; that of every address is each of them."""
    for port in wanted:
        for other, ports in held.items():
            if other != uid and any(_same(port, one) for one in ports):
                return port, other
    return None


def _same(one: HostPort, other: HostPort) -> bool:
    if (one.protocol, one.port) != (other.protocol, other.port):
        return False
    return one.address == other.address or "" in (one.address, other.address)


def refuse(port: HostPort, holder: str) -> PortTaken:
    where = f"{port.address}:{port.port}" if port.address else str(port.port)
    return PortTaken(
        f"port {where}/{port.protocol} of this node leads to pod {holder} already: it is tried again until that pod "
        "has gone; choose another hostPort, or let the scheduler place the pod (spec.nodeName does not look at ports)"
    )


class HostPorts:
    """Pod uid -> its ports in one JSON file; each change is written, synced and renamed before it counts. Raises
    NetworkFault for a damaged file: the agent could not say whose the ports are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, tuple[HostPort, ...]] = {}
        try:
            state = json.loads(path.read_bytes())
            self._held = {uid: tuple(_read(item) for item in items) for uid, items in state.items()}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError) as fault:
            raise NetworkFault(
                f"{path}, which says where the node's ports lead, is damaged ({fault!r}): move it away and start the "
                "agent again; pods with a hostPort are reached there once they have been made anew"
            ) from fault

    @property
    def held(self) -> Mapping[str, tuple[HostPort, ...]]:
        return self._held

    def claim(self, uid: str, ports: Sequence[HostPort]) -> None:
        """Asked again it changes nothing. Raises PortTaken; OSError (disk)."""
        if self._held.get(uid, ()) == tuple(ports):
            return
        found = taken(self._held, uid, ports)
        if found is not None:
            raise refuse(*found)
        self._write({**self._held, uid: tuple(ports)})

    def free(self, uids: Collection[str]) -> None:
        """One write for all of them; a pod without ports is no error."""
        left = {uid: ports for uid, ports in self._held.items() if uid not in uids}
        if left != self._held:
            self._write(left)

    def _write(self, held: dict[str, tuple[HostPort, ...]]) -> None:
        state = {uid: [[p.protocol, p.address, p.port, p.target] for p in ports] for uid, ports in held.items()}
        new = self._path.with_suffix(".new")
        with open(new, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        self._held = held


def _read(item: Sequence[object]) -> HostPort:
    protocol, address, port, target = item
    if protocol not in ("tcp", "udp", "sctp") or not isinstance(port, int) or not isinstance(target, int):
        raise ValueError(f"{item!r} is no port")
    return HostPort(str(protocol), str(IPv4Address(address)) if address else "", port, target)
