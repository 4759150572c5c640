"""Create, Update, Apply, Scale and Delete: requests turned into changes, results into answers."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shoal.master.api import admission, deletion
from shoal.master.api.faults import Forbidden, Invalid, failure_of
from shoal.master.api.foreseen import Foreseen
from shoal.master.api.shapes import Shapes
from shoal.master.model import (
    KINDS,
    AlreadyExists,
    Change,
    Conflict,
    Create,
    Delete,
    Fault,
    Key,
    Modify,
    NotFound,
    Object,
    Record,
    key_of,
)
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.stores import WriteFace
from shoal.proto.kinds import Plain
from shoal.proto.merge import merge
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from shoal.proto.validation import LAST_APPLIED
from shoal.proto.walker import from_tree, to_tree

ATTEMPTS = 5  # when the ground moves between looking and writing
HASTY_ATTEMPTS = 2  # to delete an object on the condition that it stays as it was seen
REMEMBERED_DELETIONS = 4096
FIRST = frozenset({"Namespace", "PriorityClass"})  # what decides whether others are let in
Follow: TypeAlias = Callable[[Object, Object], None]  # makes the second the successor of the first; raises Fault


class Edit:
    """A read-modify-write on committed state; keeps what went wrong, as an edit itself can only say no."""

    def __init__(self, change: Callable[[Object], Object]) -> None:
        self._change = change
        self.fault: Fault | None = None
        self.result: Object | None = None
        self.changed = False

    def __call__(self, obj: Object) -> bool:
        self.fault, self.result, self.changed = None, None, False
        try:
            new = self._change(obj)
        except Fault as fault:
            self.fault = fault
            return False
        self.result = new
        if new == obj:
            return False
        self.changed = True
        _assign(obj, new)
        return True


def _assign(target: Object, source: Object) -> None:
    target.Clear()
    target.MergeFromString(source.SerializeToString(deterministic=True))


def clone(obj: Object) -> Object:
    """A copy that may be changed."""
    copy = KINDS[obj.kind]()
    copy.MergeFromString(obj.SerializeToString())
    return copy


@dataclass(slots=True)
class Attempt:
    """One object of a request on its way: a change to write, or the answer already."""

    change: Change | None = None
    edit: Edit | None = None
    action: str = ""
    answer: c.WriteResult | None = None


class Writes:
    """The mutating verbs over the store."""

    def __init__(self, store: WriteFace, now: Callable[[], float], profiles: Collection[str] = tuple(BUILT_IN)) -> None:
        self._store = store
        self._now = now
        self._profiles = profiles  # of the scheduler, by name
        self._shapes = Shapes()
        self._deletions: OrderedDict[tuple[str, Key], None] = OrderedDict()

    # ---- verbs ----
    async def create(self, request: c.WriteRequest) -> c.WriteResponse:
        admission.check_request(request.request_id, len(request.objects))
        now = self._now()

        def attempt(index: int) -> Attempt:
            message = admission.decode(request.objects[index])
            self._prepare(message, admission.Stamp(request.request_id, index, now))
            return Attempt(Create(message), action="created")

        return await self._carry_out(range(len(request.objects)), attempt, request.dry_run)

    async def update(self, request: c.WriteRequest) -> c.WriteResponse:
        admission.check_request(request.request_id, len(request.objects))

        def attempt(index: int) -> Attempt:
            message = admission.decode(request.objects[index])
            key, revision = key_of(message), admission.precondition(request.objects[index], message)
            if request.status_only and key.kind in admission.STATUS_BY_AGENT:
                raise Forbidden(f"{key}: its status is written by its node's agent and the master only")
            edit = Edit(_successor(self._follow, message, request.status_only))
            done = self._already_so(key, edit, revision)
            change = Modify(key, edit, revision=0 if done else revision)
            return Attempt(change, edit, "configured")

        response = await self._carry_out(range(len(request.objects)), attempt, request.dry_run)
        return response if request.dry_run else await self._remove_finished(response)

    async def apply(self, request: c.WriteRequest, exactly: bool = False) -> c.WriteResponse:
        """`exactly`: an object without a revision must not be there yet, and none is looked at again."""
        admission.check_request(request.request_id, len(request.objects))
        if request.dry_run and not isinstance(self._store, Foreseen):
            return await Writes(Foreseen(self._store.view), self._now, self._profiles).apply(request, exactly)
        now = self._now()
        answers: dict[int, c.WriteResult] = {}
        revision = 0

        def attempt(index: int) -> Attempt:
            stamp = admission.Stamp(request.request_id, index, now)
            return self._apply_one(request.objects[index], stamp, exactly)

        for pending in _first_things_first(request.objects):
            for _ in range(ATTEMPTS):
                response = await self._carry_out(pending, attempt, request.dry_run)
                revision = max(revision, response.revision)
                answers.update(zip(pending, response.results, strict=True))
                if isinstance(self._store, Foreseen):
                    self._store.add(response.results)
                # It came or went between looking and writing: look again
                pending = [i for i in pending if answers[i].failure.reason in ("AlreadyExists", "NotFound")]
                pending = [i for i in pending if not _namespace_missing(self._store, request.objects[i])]
                if not pending or request.dry_run or exactly:
                    break
        made = c.WriteResponse(results=[answers[i] for i in range(len(request.objects))], revision=revision)
        return made if request.dry_run else await self._remove_finished(made)

    async def scale(self, request: c.ScaleRequest) -> c.WriteResponse:
        admission.check_request(request.request_id, 1)
        key = admission.normal_key(request.key)
        if key.kind not in ("Deployment", "ReplicaSet"):
            raise Invalid(f"a {key.kind} has no replicas: only a Deployment or a ReplicaSet can be scaled")
        if request.replicas < 0:
            raise Invalid("replicas must not be negative", [("replicas", f"is {request.replicas}: give 0 or more")])
        edit = Edit(_scaled(request))
        return await self._carry_out([0], lambda _: Attempt(Modify(key, edit), edit, "scaled"), False)

    async def delete(self, request: c.DeleteRequest) -> c.WriteResponse:
        admission.check_request(request.request_id, len(request.keys))
        if request.uid and len(request.keys) != 1:
            raise Invalid("a uid is a precondition on a single object: name one key with it")
        grace = request.grace_period_seconds if request.HasField("grace_period_seconds") else None
        wish = deletion.Wish(grace, request.propagation, request.uid)
        wish.check()
        pending = list(range(len(request.keys)))
        results: dict[int, c.WriteResult] = {}
        revision = 0

        def hastily(index: int) -> Attempt:
            return self._delete_one(request, index, wish, begin_only=False)

        def surely(index: int) -> Attempt:
            return self._delete_one(request, index, wish, begin_only=True)

        for attempt in [hastily] * HASTY_ATTEMPTS + [surely] * (ATTEMPTS - HASTY_ATTEMPTS):
            response = await self._carry_out(pending, attempt, request.dry_run)
            revision = max(revision, response.revision)
            results.update(zip(pending, response.results, strict=True))
            pending = [i for i in pending if results[i].failure.reason == "Conflict" and not wish.uid]
            if not pending:
                break
        return c.WriteResponse(results=[results[i] for i in range(len(request.keys))], revision=revision)

    # ---- one object ----
    def _prepare(self, message: Object, stamp: admission.Stamp) -> None:
        admission.prepare_create(self._store.view, message, stamp, self._profiles, self._shapes)

    def _follow(self, old: Object, new: Object) -> None:
        admission.prepare_update(self._store.view, old, new, self._now(), self._profiles)

    def _apply_one(self, envelope: c.Object, stamp: admission.Stamp, exactly: bool = False) -> Attempt:
        message = admission.decode(envelope)
        if not message.metadata.name:
            raise Invalid("apply needs metadata.name: with generateName use create")
        manifest = _manifest(message)
        key, revision = key_of(message), admission.precondition(envelope, message)
        found = self._store.view.record(key)
        if exactly and (found is None) == bool(revision) and not _made_by(stamp, message, found):
            raise Conflict(f"{key} {'was deleted' if revision else 'was made by somebody else'} meanwhile")
        if found is not None:
            edit = Edit(_applied(self._follow, message, manifest))
            done = self._already_so(key, edit, revision)
            return Attempt(Modify(key, edit, revision=0 if done else revision), edit, "configured")
        message.metadata.annotations[LAST_APPLIED] = manifest
        self._prepare(message, stamp)
        return Attempt(Create(message), action="created")

    def _delete_one(self, request: c.DeleteRequest, index: int, wish: deletion.Wish, begin_only: bool) -> Attempt:
        key = admission.normal_key(request.keys[index])
        record = self._store.view.record(key)
        if record is None:
            if (request.request_id, key) in self._deletions:
                return Attempt(answer=c.WriteResult(action="deleted"))
            raise NotFound(f"{key} not found")
        begin_only = begin_only and key.kind != "Event"  # which nobody collects
        change = deletion.plan(self._store.view, record, wish, self._now(), begin_only)
        if not request.dry_run:
            self._remember(request.request_id, key)
        if isinstance(change, Delete):
            last = c.WriteResult(action="deleted", object=envelope_of(record))
            return Attempt(change, action="deleted", answer=None if not request.dry_run else last)
        return Attempt(change, action="deleted")

    def _remember(self, request_id: str, key: Key) -> None:
        self._deletions[(request_id, key)] = None
        while len(self._deletions) > REMEMBERED_DELETIONS:
            self._deletions.popitem(last=False)

    def _already_so(self, key: Key, edit: Edit, revision: int) -> bool:
        """Whether a precondition fails only because this very change, sent again, has been committed before."""
        record = self._store.view.record(key)
        if record is None or not revision or record.revision == revision:
            return False
        edit(clone(record.message))
        return edit.fault is None and not edit.changed

    # ---- carrying out ----
    async def _carry_out(
        self, indexes: Iterable[int], make: Callable[[int], Attempt], dry_run: bool
    ) -> c.WriteResponse:
        attempts = [_try(make, index) for index in indexes]
        writing = [a for a in attempts if a.answer is None and a.change is not None]
        if dry_run:
            for attempt in writing:
                attempt.answer = self._rehearse(attempt)
        elif writing:
            results = await self._store.write([a.change for a in writing if a.change is not None])
            for attempt, result in zip(writing, results, strict=True):
                attempt.answer = _answer(attempt, result)
        answers = [a.answer for a in attempts if a.answer is not None]
        revision = max((answer.object.revision for answer in answers), default=0)
        return c.WriteResponse(results=answers, revision=revision)

    def _rehearse(self, attempt: Attempt) -> c.WriteResult:
        """What writing would have given, as of now."""
        change = attempt.change
        if isinstance(change, Create):
            if self._store.view.record(key_of(change.object)) is not None:
                return c.WriteResult(failure=failure_of(AlreadyExists(f"{key_of(change.object)} already exists")))
            body = change.object.SerializeToString(deterministic=True)
            return c.WriteResult(object=c.Object(kind=change.object.kind, body=body), action=attempt.action)
        assert change is not None
        record = self._store.view.record(change.key)
        if record is None:
            return _answer(attempt, NotFound(f"{change.key} not found"))
        if change.revision and change.revision != record.revision:
            return _answer(attempt, Conflict(f"{change.key} was changed meanwhile"))
        if isinstance(change, Delete):
            return c.WriteResult(object=envelope_of(record), action=attempt.action)
        copy = clone(record.message)
        change.edit(copy)
        body = copy.SerializeToString(deterministic=True)
        return _answer(attempt, Record(record.key, copy, body, record.revision, record.created))

    async def _remove_finished(self, response: c.WriteResponse) -> c.WriteResponse:
        """Deleted objects whose last finalizer this update took away go now."""
        changes: list[Change] = []
        for result in response.results:
            if result.action != "configured":
                continue
            message = KINDS[result.object.kind].FromString(result.object.body)
            if deletion.may_go(message):
                changes.append(Delete(key_of(message), uid=message.metadata.uid, revision=result.object.revision))
        if changes:
            await self._store.write(changes)
        return response


def _first_things_first(objects: Sequence[c.Object]) -> Iterable[list[int]]:
    """Indexes in two rounds: what is allowed in a namespace depends on its labels, and pods name priority classes."""
    for first in (True, False):
        if indexes := [i for i, found in enumerate(objects) if (found.kind in FIRST) == first]:
            yield indexes


def _try(make: Callable[[int], Attempt], index: int) -> Attempt:
    try:
        return make(index)
    except Fault as fault:
        return Attempt(answer=c.WriteResult(failure=failure_of(fault)))


def _answer(attempt: Attempt, result: Record | Fault | None) -> c.WriteResult:
    if attempt.edit is not None and attempt.edit.fault is not None:
        return c.WriteResult(failure=failure_of(attempt.edit.fault))
    if isinstance(result, Fault):
        return c.WriteResult(failure=failure_of(result))
    action = attempt.action
    if attempt.edit is not None and not attempt.edit.changed:
        action = "unchanged"
    if result is None:
        return c.WriteResult(action=action)
    return c.WriteResult(object=envelope_of(result), action=action)


def envelope_of(record: Record) -> c.Object:
    """The stored bytes, passed through."""
    return c.Object(kind=record.key.kind, body=record.body, revision=record.revision)


def _successor(follow: Follow, message: Object, status_only: bool) -> Callable[[Object], Object]:
    def change(old: Object) -> Object:
        if status_only:
            new = clone(old)
            admission.copy_status(message, new)
            return new
        new = clone(message)
        follow(old, new)
        return new

    return change


def _applied(follow: Follow, message: Object, manifest: str) -> Callable[[Object], Object]:
    def change(old: Object) -> Object:
        last = None
        if text := old.metadata.annotations.get(LAST_APPLIED):
            last = _last_manifest(text, type(message))
        new = merge(clone(old), last, message)
        new.metadata.annotations[LAST_APPLIED] = manifest
        follow(old, new)
        return new

    return change


def _made_by(stamp: admission.Stamp, message: Object, found: Record | None) -> bool:
    """Whether what is there was made by this very request, sent before."""
    return found is not None and found.message.metadata.uid == str(stamp.uid(message))


def _last_manifest(text: str, cls: type[Object]) -> Object | None:
    try:
        return from_tree(json.loads(text), cls)[0]
    except ValueError:
        return None  # somebody edited the annotation: nothing is known to have been set by us


def _manifest(message: Object) -> str:
    """What apply remembers of a manifest: what a person wrote, in one line."""
    kept = clone(message)
    if not isinstance(kept, Plain):
        kept.ClearField("status")
    kept.metadata.annotations.pop(LAST_APPLIED, None)
    for name in ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"):
        kept.metadata.ClearField(name)
    if isinstance(kept, o.ConfigMap):
        for key in kept.data:
            kept.data[key] = ""  # the names are enough to know what to remove; else a large one would be stored twice
        for key in kept.binaryData:
            kept.binaryData[key] = b""
    if isinstance(kept, o.Secret):
        for key in kept.data:
            kept.data[key] = b""  # likewise; and values of secrets do not belong in annotations
        for key in kept.stringData:
            kept.stringData[key] = ""
    return json.dumps(to_tree(kept), separators=(",", ":"), ensure_ascii=False)


def _scaled(request: c.ScaleRequest) -> Callable[[Object], Object]:
    def change(old: Object) -> Object:
        new = clone(old)
        assert isinstance(new, o.Deployment | o.ReplicaSet)
        if new.spec.replicas == request.replicas:
            return new  # also when the precondition fails: this may be a retry that finds its own result
        if request.HasField("current_replicas") and new.spec.replicas != request.current_replicas:
            raise Conflict(f"{key_of(old)} has {new.spec.replicas} replicas now, not {request.current_replicas}")
        new.spec.replicas = request.replicas
        new.metadata.generation += 1
        return new

    return change


def _namespace_missing(store: WriteFace, envelope: c.Object) -> bool:
    try:
        message = admission.decode(envelope)
    except Fault:
        return True
    namespace = message.metadata.namespace
    return bool(namespace) and store.view.get("Namespace", "", namespace) is None
