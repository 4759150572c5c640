"""Reading the whole state from etcd: where to start so that history fills the event window, and the paged list."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.master.model import Key
from shoal.master.store import keys
from shoal.master.store.apply import Applied, Cache
from shoal.master.store.codec import unpack
from shoal.master.store.port import Compacted, HistoryEvent, KeyValue, Port
from shoal.proto.v1 import store_pb2 as s

LOOK_BACK = (16_384, 4_096, 1_024, 256, 64)  # revisions, tried in turn
FIRST_PAGE = 128  # keys
MAX_PAGE = 4_096
PAGE_BYTES = 2 << 20


async def start_revision(port: Port, window_events: int) -> int:
    """A revision from which history is kept and is short enough for the window; else the newest."""
    page = await port.range(keys.COMMIT)
    if not page.items:
        return page.revision
    newest = s.CommitRecord.FromString(page.items[0].value).changes
    for back in LOOK_BACK:
        revision = page.items[0].mod_revision - back
        if revision < 1:
            continue
        try:
            older = await port.range(keys.COMMIT, revision=revision)
        except Compacted:
            continue
        known = s.CommitRecord.FromString(older.items[0].value).changes if older.items else 0
        if newest - known <= window_events:
            return revision
    return page.revision


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
