"""What the store's tests share: objects, a store over the in-memory etcd, and a leadership that only a test ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from shoal.master.election import Leadership
from shoal.master.model import Key, Object, Record
from shoal.master.store import keys
from shoal.master.store.memory import Faults, Memory, MemoryEtcd
from shoal.master.store.port import Compare, Port, Put
from shoal.master.store.store import Store
from shoal.proto.v1 import objects_pb2 as o


def pod(name: str, namespace: str = "default", **labels: str) -> o.Pod:
    message = o.Pod(apiVersion="v1", kind="Pod")
    message.metadata.name = name
    message.metadata.namespace = namespace
    message.metadata.uid = f"uid-{namespace}-{name}"
    message.metadata.labels.update(labels)
    return message


def pod_key(name: str, namespace: str = "default") -> Key:
    return Key("Pod", namespace, name)


def label(name: str, value: str) -> Callable[[Object], bool]:
    """An edit that sets a label."""

    def edit(message: Object) -> bool:
        message.metadata.labels[name] = value
        return True

    return edit


def record_of(result: object) -> Record:
    assert isinstance(result, Record), result
    return result


async def take_leadership(port: Port, ttl: float = 3600.0) -> Leadership:
    """Puts the leader key, over whatever is there; nobody renews it."""
    clock = asyncio.get_running_loop().time
    sent = clock()
    lease = await port.grant(ttl)
    page = await port.range(keys.LEADER)
    if page.items:
        await port.revoke(page.items[0].lease)
    result = await port.txn((Compare(keys.LEADER, "create", 0),), (Put(keys.LEADER, b"", lease.id),))
    assert result.succeeded
    return Leadership(result.revision, lease, sent, clock)


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def leading(
    server: MemoryEtcd, faults: Faults | None = None, now: Callable[[], float] | None = None
) -> AsyncGenerator[tuple[Store, Memory, Leadership]]:
    """A store that leads over the in-memory etcd."""
    port = Memory(server, faults)
    leadership = await take_leadership(Memory(server))
    store = Store(port, now or Clock())
    await store.open(leadership)
    try:
        yield store, port, leadership
    finally:
        await store.close()
        server.close()
