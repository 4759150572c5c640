"""Reading the whole state from etcd: where to start so that history fills the event window, and the paged list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shoal.master.model import Key
from shoal.master.store import keys
from shoal.master.store.apply import Applied, Cache
from shoal.master.store.codec import unpack
from shoal.master.store.port import Compacted, HistoryEvent, KeyValue, Port
from shoal.proto.v1 import store_pb2 as s

LOOK_BACK = (16_384, 4_096, 1_024, 256, 64)  # revisions, tried in turn
BEFORE_COMMITS = 1  # an empty etcd's revision
FIRST_PAGE = 128  # keys
MAX_PAGE = 4_096
PAGE_BYTES = 2 << 20


class Start(NamedTuple):
    """Where to begin: list at `read`, which holds what was committed up to `revision` and nothing newer."""

    read: int
    revision: int  # the last commit's; the others in between belong to keys that are no objects


async def newest(port: Port) -> Start:
    """The newest state."""
    page = await port.range(keys.COMMIT)
    return Start(page.revision, page.items[0].mod_revision if page.items else BEFORE_COMMITS)


async def start_with_history(port: Port, window_events: int) -> Start:
    """A state from which history is kept and is short enough for the event window; else the newest one."""
    page = await port.range(keys.COMMIT)
    if page.items:
        last = page.items[0].mod_revision
        changes = s.CommitRecord.FromString(page.items[0].value).changes
        for back in LOOK_BACK:
            read = max(last - back, BEFORE_COMMITS)
            try:
                older = (await port.range(keys.COMMIT, revision=read)).items
            except Compacted:
                continue
            known = s.CommitRecord.FromString(older[0].value).changes if older else 0
            if changes - known <= window_events:
                return Start(read, older[0].mod_revision if older else BEFORE_COMMITS)
    return await newest(port)


async def list_objects(port: Port, revision: int) -> list[Applied]:
    """All objects as they were at this revision. Raises Compacted, Undecodable."""
    found: list[Applied] = []
    start, limit = keys.OBJECTS, FIRST_PAGE
    while True:
        page = await port.range(start, keys.OBJECTS_END, limit=limit, revision=revision)
        found += applied_of(page.items)
        if not page.more:
            return found
        start = page.items[-1].key + b"\0"
        size = sum(len(item.value) for item in page.items)
        if size < PAGE_BYTES // 2:
            limit = min(limit * 2, MAX_PAGE)
        elif size > PAGE_BYTES:
            limit = max(limit // 2, 1)


def applied_of(items: Sequence[KeyValue | HistoryEvent]) -> list[Applied]:
    """The objects among keys of all sorts; kinds that this version does not know are left alone. Raises Undecodable."""
    changes: list[Applied] = []
    for item in items:
        if (key := keys.decode(item.key)) is not None:
            value = item.value
            record = None if value is None else unpack(key, value, item.mod_revision, item.create_revision)
            changes.append(Applied(key, record))
    return changes


def difference(cache: Cache, listed: Sequence[Applied], kinds: Sequence[str]) -> list[Applied]:
    """What turns the cache into the listed state."""
    present: set[Key] = {change.key for change in listed}
    gone = [Applied(record.key, None) for kind in kinds for record in cache.records(kind) if record.key not in present]
    return gone + [change for change in listed if _differs(cache, change)]


def _differs(cache: Cache, change: Applied) -> bool:
    old = cache.record(change.key)
    return (
        old is None or change.record is None or old.revision != change.record.revision or old.body != change.record.body
    )
