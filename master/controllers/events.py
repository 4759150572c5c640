"""Events, coalesced: one object per (object, part, reason) that counts; bounded per object, for an hour. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoal.master.controllers.base import Said, instant, seconds, terminating
from shoal.master.model import Change, Create, Delete, Key, Modify, Object, View, key_of
from shoal.proto.v1 import objects_pb2 as o

EXPIRY_SECONDS = 3600.0
KEPT_PER_OBJECT = 16
INVOLVED_LABEL = "shoal.dev/involved-uid"  # lets the label index find an object's events
HOME_OF_CLUSTER_SCOPED = "default"  # the namespace of events about objects that have none
REWRITE_SECONDS = 10.0  # a repeated event is counted in memory for so long before it is written again
NAME_LENGTH = 200  # of the object's name, so that the event's stays below 253
MESSAGE_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Note:
    """An event on its way to the store: what was said, by whom, how often, first and last (wall clock)."""

    said: Said
    component: str
    count: int
    first: float
    last: float

    def again(self, said: Said, now: float) -> Note:
        return replace(self, said=said, count=self.count + said.count, last=now)


def event_key(said: Said) -> Key:
    """The same for every repetition."""
    meta = said.about.metadata
    what = f"{meta.uid}/{said.reason}/{said.part}" if said.part else f"{meta.uid}/{said.reason}"
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return Key("Event", meta.namespace or HOME_OF_CLUSTER_SCOPED, f"{meta.name[:NAME_LENGTH]}.{digest}")


def due(view: View, key: Key, now: float) -> float:
    """Seconds until this event may be written: new ones at once, repeated ones only now and then."""
    found = view.get(*key)
    if not isinstance(found, o.Event):
        return 0.0
    return min(REWRITE_SECONDS, max(0.0, seconds(found.lastTimestamp) + REWRITE_SECONDS - now))


def write(view: View, note: Note, uid: str) -> list[Change]:
    """The changes that put the note into the store; the object's oldest events make room."""
    key = event_key(note.said)
    home = view.get("Namespace", "", key.namespace)
    if key.namespace != HOME_OF_CLUSTER_SCOPED and (home is None or terminating(home)):
        return []  # it would outlive its namespace, or hold it back
    if view.get(*key) is not None:
        return [Modify(key, lambda found: _repeat(found, note))]
    room: list[Change] = []
    siblings = view.labelled("Event", key.namespace, INVOLVED_LABEL, note.said.about.metadata.uid)
    if len(siblings) >= KEPT_PER_OBJECT:
        oldest = sorted((e for e in siblings if isinstance(e, o.Event)), key=lambda e: seconds(e.lastTimestamp))
        room = [Delete(key_of(e), uid=e.metadata.uid) for e in oldest[: len(siblings) - KEPT_PER_OBJECT + 1]]
    return [*room, Create(build(key, note, uid))]


def build(key: Key, note: Note, uid: str) -> o.Event:
    about, said = note.said.about, note.said
    event = o.Event(apiVersion="v1", kind="Event", reason=said.reason, type=said.type, count=note.count)
    event.message = said.message[:MESSAGE_LENGTH]
    event.metadata.name, event.metadata.namespace, event.metadata.uid = key.name, key.namespace, uid
    event.metadata.creationTimestamp.CopyFrom(instant(note.last))
    event.metadata.labels[INVOLVED_LABEL] = about.metadata.uid
    event.involvedObject.CopyFrom(
        o.ObjectReference(
            apiVersion=about.apiVersion,
            kind=about.kind,
            name=about.metadata.name,
            namespace=about.metadata.namespace,
            uid=about.metadata.uid,
        )
    )
    event.source.component = note.component
    event.firstTimestamp.CopyFrom(instant(note.first))
    event.lastTimestamp.CopyFrom(instant(note.last))
    return event


def _repeat(found: Object, note: Note) -> bool:
    if not isinstance(found, o.Event):
        return False
    found.count += note.count
    found.message = note.said.message[:MESSAGE_LENGTH]
    found.type = note.said.type
    found.lastTimestamp.CopyFrom(instant(max(note.last, seconds(found.lastTimestamp))))
    return True


def expired(view: View, now: float) -> list[Change]:
    """Events that were last seen an hour ago."""
    old = [e for e in view.all("Event") if isinstance(e, o.Event) and now - seconds(e.lastTimestamp) > EXPIRY_SECONDS]
    return [Delete(key_of(e), uid=e.metadata.uid) for e in old]


def merge(notes: Mapping[Key, Note], said: Said, component: str, now: float) -> Note:
    """The note for this event with what was counted before."""
    found = notes.get(event_key(said))
    return found.again(said, now) if found else Note(said, component, said.count, now, now)
