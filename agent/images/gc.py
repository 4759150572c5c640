"""Which images and blobs go to free the disk. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.agent.images.catalog import Record
from shoal.agent.images.disk import State


@dataclass(frozen=True, slots=True)
class Plan:
    images: Sequence[Record] = ()
    blobs: Sequence[str] = ()  # packed layers: containers do without them


def plan(state: State, bytes_to_free: int, now: float, unused_for_s: float) -> Plan:
    """Packed layers first, then images, each the longest unused first, until `bytes_to_free` are free. A time of use
    that lies ahead (the clock was set back) counts as now."""
    if bytes_to_free <= 0:
        return Plan()
    old = [one for one in _by_use(state) if now - one.used >= unused_for_s]
    blobs: list[str] = []
    for record in old:
        blobs += [blob for blob in _own_blobs(state, record, old) if blob not in blobs]
        if freed(state, after(state, Plan((), blobs))) >= bytes_to_free:
            return Plan((), blobs)
    images: list[Record] = []
    for record in state.catalog.unused(now - unused_for_s):
        images.append(record)
        if freed(state, after(state, Plan(images, blobs))) >= bytes_to_free:
            break
    return Plan(images, blobs)


def after(state: State, chosen: Plan) -> State:
    """What would be left."""
    catalog = state.catalog.without(chosen.images)
    chains, blobs = catalog.chains(), catalog.blobs() - set(chosen.blobs)
    return replace(
        state,
        catalog=catalog,
        layers={chain: layer for chain, layer in state.layers.items() if chain in chains},
        blobs={digest: size for digest, size in state.blobs.items() if digest in blobs},
    )


def freed(before: State, left: State) -> int:
    """Bytes; layers by the size of their tars."""
    return size(before) - size(left)


def size(state: State) -> int:
    return sum(layer.size for layer in state.layers.values()) + sum(state.blobs.values())


def _by_use(state: State) -> list[Record]:
    return sorted(state.catalog.images.values(), key=lambda one: (one.used, one.digest))


def _own_blobs(state: State, record: Record, old: Sequence[Record]) -> list[str]:
    """The blobs of `record` that no image in recent use shares."""
    chosen = {one.digest for one in old}
    recent = {blob for one in state.catalog.images.values() if one.digest not in chosen for blob in one.blobs}
    return [blob for blob in record.blobs if blob in state.blobs and blob not in recent]
