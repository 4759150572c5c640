"""What a change comes to on committed state: something to write, nothing to do, or a refusal. Pure."""

from __future__ import annotations

from typing import NamedTuple

from shoal.master.model import (
    AlreadyExists,
    Change,
    Conflict,
    Create,
    Delete,
    Fault,
    Invalid,
    Key,
    Modify,
    NotFound,
    Object,
    Record,
    TooLarge,
    key_of,
)
from shoal.master.store import keys
from shoal.master.store.codec import body_of, clone
from shoal.master.store.port import MAX_REQUEST_BYTES

MAX_OBJECT_BYTES = MAX_REQUEST_BYTES - 16_384  # room for the key, the commit record and the compares


class Wanted(NamedTuple):
    """Write this message. `created` is the create revision that it keeps, 0 for a new object."""

    message: Object
    body: bytes
    created: int


class Removal(NamedTuple):
    """Delete the key."""


def key_of_change(change: Change) -> Key:
    """The key that a change is about. Raises Invalid when it can be no key."""
    key = key_of(change.object) if isinstance(change, Create) else change.key
    keys.check(key)
    return key


def decide(change: Change, current: Record | None) -> Wanted | Removal | Record | Fault | None:
    """Wanted or Removal: to be written. Else the result as it is: the record (unchanged), None (gone), a Fault."""
    try:
        if isinstance(change, Create):
            return _create(change, current)
        if isinstance(change, Modify):
            return _modify(change, current)
        return _delete(change, current)
    except Fault as fault:
        return fault


def _create(change: Create, current: Record | None) -> Wanted | Record:
    metadata, key = change.object.metadata, key_of(change.object)
    if not metadata.uid:
        raise Invalid(f"{key}: metadata.uid is empty; whoever creates an object gives it one")
    if current is not None:
        if current.message.metadata.uid == metadata.uid:
            return current  # a retry
        raise AlreadyExists(f"{key} already exists, with uid {current.message.metadata.uid}")
    message = clone(change.object)
    return Wanted(message, _body(key, message), 0)


def _modify(change: Modify, current: Record | None) -> Wanted | Record:
    if current is None:
        raise NotFound(f"{change.key} does not exist")
    _check(change, current)
    message = clone(current.message)
    try:
        wanted = change.edit(message)
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"{change.key}: the change failed and was not made: {error!r}") from error
    if not wanted:
        return current
    if key_of(message) != change.key or message.metadata.uid != current.message.metadata.uid:
        raise Invalid(f"{change.key}: a change must leave kind, namespace, name and uid as they are")
    message.metadata.ClearField("resourceVersion")
    body = _body(change.key, message)
    return current if body == current.body else Wanted(message, body, current.created)


def _delete(change: Delete, current: Record | None) -> Removal | None:
    if current is None:
        if change.uid:
            return None  # that very object is gone: what was asked for
        raise NotFound(f"{change.key} does not exist")
    _check(change, current)
    return Removal()


def _check(change: Modify | Delete, current: Record) -> None:
    uid = current.message.metadata.uid
    if change.uid and change.uid != uid:
        raise Conflict(f"{change.key}: it has uid {uid} now, not {change.uid}: it was deleted and made anew")
    if change.revision and change.revision != current.revision:
        raise Conflict(
            f"{change.key}: it is at resourceVersion {current.revision} now, not {change.revision}: "
            "read it again and repeat the change"
        )


def _body(key: Key, message: Object) -> bytes:
    body = body_of(message)
    if len(body) > MAX_OBJECT_BYTES:
        raise TooLarge(f"{key} has {len(body)} bytes, at most {MAX_OBJECT_BYTES} can be stored")
    return body
