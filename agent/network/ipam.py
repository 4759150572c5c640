"""Addresses of a node's pods: which comes next is decided purely, `Leases` keeps on disk which is whose."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from shoal.agent.network.port import NetworkFault


class RangeFull(Exception):
    """Every address of the node's pod range is in use."""


def gateway(cidr: IPv4Network) -> IPv4Address:
    """The bridge's address: the first of the range."""
    return cidr.network_address + 1


def next_address(cidr: IPv4Network, used: Collection[IPv4Address], last: IPv4Address | None) -> IPv4Address:
    """The first free address after `last`, going round: an address rests as long as possible before it is used again.
    Raises RangeFull."""
    first, end = int(cidr.network_address) + 2, int(cidr.broadcast_address)
    size = end - first
    begin = int(last) + 1 - first if last is not None and last in cidr else 0
    for step in range(max(size, 0)):
        address = IPv4Address(first + (begin + step) % size)
        if address not in used:
            return address
    raise RangeFull(f"all {max(size, 0)} pod addresses of {cidr} are in use on this node")


class Leases:
    """Pod uid -> address in one JSON file; each change is written, synced and renamed before it counts.
    Raises NetworkFault for a damaged file: addresses that are in use must not be given again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: IPv4Address | None = None
        self._held: dict[str, IPv4Address] = {}
        try:
            self._read(json.loads(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise NetworkFault(
                f"{path}, which says whose the pod addresses are, is damaged ({fault!r}): drain this node, "
                "end its pods, move the file away and start the agent again"
            ) from fault

    def _read(self, state: dict[str, Any]) -> None:
        self._held = {uid: IPv4Address(text) for uid, text in state["held"].items()}
        self._last = IPv4Address(state["last"]) if state["last"] else None

    @property
    def held(self) -> Mapping[str, IPv4Address]:
        return self._held

    def take(self, uids: Sequence[str], cidr: IPv4Network) -> dict[str, IPv4Address]:
        """The pods' addresses, the same ones each time they are asked; one write for all of them. When the range ends
        the last go without one; RangeFull when it is the first. Raises OSError (disk)."""
        held, last = dict(self._held), self._last
        found: dict[str, IPv4Address] = {}
        for uid in uids:
            if uid not in held or held[uid] not in cidr:
                try:
                    held[uid] = last = next_address(cidr, set(held.values()), last)
                except RangeFull:
                    if not found:
                        raise
                    break
            found[uid] = held[uid]
        if held != self._held:
            self._write(held, last)
        return found

    def free(self, uids: Collection[str]) -> None:
        """One write for all of them; what holds no address is no error."""
        left = {uid: address for uid, address in self._held.items() if uid not in uids}
        if left != self._held:
            self._write(left, self._last)

    def _write(self, held: dict[str, IPv4Address], last: IPv4Address | None) -> None:
        state = {"last": str(last) if last else None, "held": {uid: str(a) for uid, a in held.items()}}
        new = self._path.with_suffix(".new")
        with open(new, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        self._held, self._last = held, last
