"""Paged lists at one revision, from the cache: newer changes are undone with the event window."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from shoal.master.model import Expired, Invalid, Key, Record
from shoal.master.store.apply import Cache
from shoal.master.store.watch import Predicate, Window
from shoal.proto.v1 import store_pb2 as s

PAGE_BYTES = 8 << 20  # of bodies; clients take messages of a few times as much


@dataclass(frozen=True, slots=True)
class ListPage:
    records: Sequence[Record]  # by namespace and name
    revision: int  # of the whole list
    continue_token: str  # empty: this was the last page
    remaining: int  # objects after this page; 0 with a predicate when not known


def list_page(
    cache: Cache,
    window: Window,
    kind: str,
    namespace: str | None,
    predicate: Predicate | None,
    limit: int,
    continue_token: str,
) -> ListPage:
    """The next page of at most `limit` objects (0: as many as fit) and PAGE_BYTES, but one object at least.
    Raises Expired, Invalid (a token that is none of ours)."""
    token = _parse(continue_token, kind, namespace or "") if continue_token else None
    revision = token.revision if token else cache.revision
    if revision > cache.revision:
        raise Expired(f"the list was begun at revision {revision}, this server is at {cache.revision}: list again")
    past = _undone(window, kind, revision) if revision < cache.revision else {}
    order = _order(cache, kind, past)
    after = Key(kind, token.after_namespace, token.after_name) if token else Key(kind, namespace or "", "")
    records: list[Record] = []
    size = 0
    for at in range(bisect_right(order, after), len(order)):
        key = order[at]
        if namespace and key.namespace != namespace:
            break
        record = past[key] if key in past else cache.record(key)
        if record is None or (predicate is not None and not predicate(record.message)):
            continue
        if (limit and len(records) == limit) or (records and size + len(record.body) > PAGE_BYTES):
            left = 0 if predicate else _count(order, at, namespace, past)
            return ListPage(records, revision, _token(revision, kind, namespace or "", records[-1].key), left)
        records.append(record)
        size += len(record.body)
    return ListPage(records, revision, "", 0)


def _undone(window: Window, kind: str, revision: int) -> dict[Key, Record | None]:
    """For each key of the kind that changed after `revision`: its record at that revision. Raises Expired."""
    past: dict[Key, Record | None] = {}
    for _, events in window.after(revision):
        for event in events:
            if event.key.kind == kind:
                past.setdefault(event.key, event.old)
    return past


def _order(cache: Cache, kind: str, past: dict[Key, Record | None]) -> Sequence[Key]:
    present = cache.sorted_keys(kind)
    gone = [key for key, record in past.items() if record is not None and cache.record(key) is None]
    return sorted([*present, *gone]) if gone else present


def _count(order: Sequence[Key], at: int, namespace: str | None, past: dict[Key, Record | None]) -> int:
    """The objects from order[at] on, at the list's revision."""
    end = bisect_right(order, Key(order[at].kind, namespace + "\0", "")) if namespace else len(order)
    if not past:
        return end - at
    return sum(key not in past or past[key] is not None for key in order[at:end])


def _token(revision: int, kind: str, namespace: str, last: Key) -> str:
    token = s.ContinueToken(
        revision=revision, kind=kind, namespace=namespace, after_namespace=last.namespace, after_name=last.name
    )
    return base64.urlsafe_b64encode(token.SerializeToString()).decode()


def _parse(text: str, kind: str, namespace: str) -> s.ContinueToken:
    try:
        token = s.ContinueToken.FromString(base64.b64decode(text.encode(), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, DecodeError) as error:
        raise Invalid(
            f"the continue token is none of this cluster's ({error}): begin the list again without it"
        ) from error
    if token.revision <= 0 or token.kind != kind or token.namespace != namespace:
        raise Invalid("the continue token belongs to another list: begin the list again without it")
    return token
