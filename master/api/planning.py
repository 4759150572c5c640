"""Plan, CarryOut, WhatIf, Fit and Rebalance: what would happen, without writing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from shoal.master.api import admission
from shoal.master.api.copying import Copies, breathe
from shoal.master.api.faults import Invalid
from shoal.master.api.writes import Writes
from shoal.master.model import KINDS, Key, Object, Record
from shoal.master.planning import compare, effects, fit, moving, whatif
from shoal.master.planning.rehearsal import Rehearsal
from shoal.master.ports import ApiStore
from shoal.master.scheduler import rebalance
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.profiles import Profile
from shoal.proto.differences import different
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o

OBJECTS = 500  # of one plan
DIFFERENCES = 50  # of one object that are told
MOST_MOVES = 1000
ANOTHER = "-x"  # ends the name of a pod that is counted
USUAL_MOVES = 20
SERVERS_OWN = ("status", "metadata.generation", "metadata.annotations[shoal.dev/last-applied")
HIDDEN = (o.Secret, o.ConfigMap)  # of which no value is shown
REFUSED = "what is refused must be put right before the rest can be planned"


class Planning:
    """The planning verbs over the store. Raises Fault."""

    def __init__(
        self,
        store: ApiStore,
        now: Callable[[], float],
        version: Callable[[], c.VersionResponse],
        profiles: Mapping[str, Profile],
    ) -> None:
        self._now, self._version, self._profiles = now, version, profiles
        self._writes = Writes(store, now, profiles)
        self._copies = Copies(store, now, profiles)

    async def plan(self, request: c.PlanRequest) -> c.PlanResponse:
        async with self._copies.copy() as rehearsal:
            return await self._plan(rehearsal, request.objects, "plan")

    async def carry_out(self, request: c.CarryOutRequest) -> c.CarryOutResponse:
        """Applies the plan's objects when the same plan would be made now."""
        admission.check_request(request.request_id, 1)
        plan = request.expected
        if plan.cluster_incarnation != self._version().cluster_incarnation:
            raise Invalid("the plan was made for another cluster, or before this one was restored: plan again")
        if [compare.key_of(found) for found in request.objects] != [compare.key_of(one) for one in plan.objects]:
            raise Invalid("the plan's objects and what it says of them do not belong together: plan again")
        async with self._copies.copy() as rehearsal:
            now = await self._plan(rehearsal, request.objects, request.request_id)
        if all(found.action == "unchanged" for found in now.objects):  # nothing to do, or it was done before
            return c.CarryOutResponse(results=await self._apply(request, now))
        changed = [*compare.changed_objects(plan, now)] or [*compare.changed_pods(plan, now)]
        if changed:
            return c.CarryOutResponse(changed=changed)
        return c.CarryOutResponse(results=await self._apply(request, now))

    async def what_if(self, request: c.WhatIfRequest) -> c.WhatIfResponse:
        question = whatif.Question(
            add=[(one.count, one.like) for one in request.add],
            fail=list(dict.fromkeys(request.fail)),
            drain=list(dict.fromkeys(request.drain)),
            scale=[(admission.normal_key(one.key), one.replicas) for one in request.scale],
        )
        if not (question.add or question.fail or question.drain or question.scale):
            raise Invalid("what if what? Say which nodes fail, are drained or added, or what is scaled")
        async with self._copies.copy() as rehearsal:
            response = c.WhatIfResponse(revision=rehearsal.overlay.revision)
            whatif.check(rehearsal, question)
            before = whatif.headroom(rehearsal.snapshot)
            found: whatif.Answer = await breathe(whatif.answer(rehearsal, question))
            response.headroom.extend(_headroom(before, whatif.headroom(rehearsal.snapshot)))
            response.pods.extend(effects.pods_of(rehearsal, found.lost))
        response.notes.extend(found.notes)
        for one in found.blocked:
            response.blocked.add(pod=_key(one.pod), node=one.node, budget=_key(one.budget), reason=one.reason)
        return response

    async def fit(self, request: c.FitRequest) -> c.FitResponse:
        if not 0 <= request.limit <= fit.MOST_PODS:
            raise Invalid(f"the limit is {request.limit}: give 1 to {fit.MOST_PODS}, or none")
        limit = request.limit or fit.MOST_PODS
        async with self._copies.copy() as rehearsal:
            response = c.FitResponse(revision=rehearsal.overlay.revision)
            planned = await self._try_apply(rehearsal, [_another(sent) for sent in request.objects], "fit")
            refused = next((one for one in planned if one.HasField("failure")), None)
            if refused is not None:
                raise Invalid(f"{compare.shown(_as_sent(refused.key))}: {refused.failure.message}")
            rehearsal.settle_events()
            for one in planned:
                pod = fit.pod_in(rehearsal.overlay, Key(one.key.kind, one.key.namespace, one.key.name))
                if pod is not None:
                    found: fit.Fit = await breathe(
                        fit.fit(rehearsal.snapshot, Scheduler(self._profiles), fit.class_of(pod), limit)
                    )
                    response.results.append(_fit_result(_as_sent(one.key), found))
        if not response.results:
            raise Invalid("nothing in it has pods: give Pods, Deployments or ReplicaSets")
        return response

    async def rebalance(self, request: c.RebalanceRequest) -> c.RebalanceResponse:
        if not 0 <= request.max_moves <= MOST_MOVES:
            raise Invalid(f"at most {request.max_moves} moves: give 1 to {MOST_MOVES}")
        async with self._copies.copy() as rehearsal:
            movable: moving.Movable = await breathe(moving.movable(rehearsal))
            snapshot = rehearsal.snapshot
            before = dict(zip(snapshot.names, rebalance.loads(snapshot).tolist(), strict=True))
            limit = request.max_moves or USUAL_MOVES
            plan: rebalance.Moves = await breathe(
                rebalance.plan_rebalance(snapshot, Scheduler(self._profiles), movable.pods, limit)
            )
            after = dict(zip(snapshot.names, rebalance.loads(snapshot).tolist(), strict=True))
            stopped = plan.stopped if movable.pods else f"no pod may be moved: {movable.words() or 'there is none'}"
            response = c.RebalanceResponse(stopped=stopped, revision=rehearsal.overlay.revision)
            for move in plan.moves:
                pod = rehearsal.overlay.by_uid(move.uid)
                assert isinstance(pod, o.Pod)
                response.moves.append(_move(move, pod, effects.owner_key(rehearsal, pod)))
        for name, share in before.items():
            response.nodes.add(node=name, before=share, after=after[name])
        return response

    # ---- a plan ----
    async def _plan(self, rehearsal: Rehearsal, objects: Sequence[c.Object], request_id: str) -> c.PlanResponse:
        response = c.PlanResponse(
            revision=rehearsal.overlay.revision, cluster_incarnation=self._version().cluster_incarnation
        )
        response.objects.extend(await self._try_apply(rehearsal, objects, request_id))
        if any(planned.HasField("failure") for planned in response.objects):
            response.notes.append(REFUSED)
            return response
        rehearsal.settle_events()
        await breathe(rehearsal.run())
        response.pods.extend(effects.pods_of(rehearsal, {}))
        response.images.extend(effects.fetches(rehearsal))
        for key in rehearsal.held_up:
            response.notes.append(
                f"{key} makes no pods for a while because its pods fail: planned as if that were over"
            )
        return response

    async def _try_apply(
        self, rehearsal: Rehearsal, objects: Sequence[c.Object], request_id: str
    ) -> list[c.PlannedObject]:
        """Applies to the copy what was sent, and says what each object comes to."""
        if not 1 <= len(objects) <= OBJECTS:
            raise Invalid(f"{len(objects)} objects: plan 1 to {OBJECTS} at once")
        overlay = rehearsal.overlay
        writes = Writes(overlay, self._now, self._profiles)
        planned: list[c.PlannedObject] = []
        for batch in _batches(objects, request_id):
            before = [overlay.record(key) if (key := _key_in(sent)) else None for sent in batch.objects]
            answers = (await writes.apply(batch)).results
            for sent, old, result in zip(batch.objects, before, answers, strict=True):
                planned.append(_planned(sent, old, result))
        return planned

    async def _apply(self, request: c.CarryOutRequest, seen: c.PlanResponse) -> list[c.WriteResult]:
        """Writes each object only if it is as it was seen."""
        objects = []
        for sent, was in zip(request.objects, seen.objects, strict=True):
            objects.append(c.Object(kind=sent.kind, body=sent.body, revision=was.revision))
        results: list[c.WriteResult] = []
        for batch in _batches(objects, request.request_id):
            results += (await self._writes.apply(batch, exactly=True)).results
        return results


def _batches(objects: Sequence[c.Object], request_id: str) -> Iterator[c.WriteRequest]:
    """Requests as large as Apply takes them, each with an id of its own."""
    for start in range(0, len(objects), admission.OBJECTS):
        part = objects[start : start + admission.OBJECTS]
        yield c.WriteRequest(request_id=f"{request_id[:100]}/{start}", objects=part)


def _key_in(envelope: c.Object) -> Key | None:
    """None for what no object can be read from: applying it says why."""
    try:
        message = admission.decode(envelope)
    except Exception:
        return None
    return Key(message.kind, message.metadata.namespace, message.metadata.name)


def _planned(sent: c.Object, old: Record | None, result: c.WriteResult) -> c.PlannedObject:
    key = _key_in(sent) or Key(sent.kind, "", "")
    planned = c.PlannedObject(key=_key(key), action=result.action)
    if result.HasField("failure"):
        planned.failure.CopyFrom(result.failure)
    if old is not None:
        planned.uid, planned.revision = old.message.metadata.uid, old.revision
        if result.action == "configured":
            new = KINDS[key.kind].FromString(result.object.body)
            planned.differences.extend(differences(old.message, new))
    return planned


def differences(old: Object, new: Object) -> list[str]:
    """The fields that change, without what only the server writes, and without values of data."""
    found = [one for one in different(old, new) if not one.startswith(SERVERS_OWN)]
    if isinstance(new, HIDDEN):
        found = [one.partition(" (")[0] for one in found]
    more = [f"and {len(found) - DIFFERENCES} more"] if len(found) > DIFFERENCES else []
    return found[:DIFFERENCES] + more


def _another(sent: c.Object) -> c.Object:
    """A pod under another name: it may be there already, and another one is asked about."""
    if sent.kind != "Pod" or (key := _key_in(sent)) is None or not key.name:
        return sent
    pod = o.Pod.FromString(sent.body)
    pod.metadata.name = key.name + ANOTHER
    return c.Object(kind="Pod", body=pod.SerializeToString())


def _as_sent(key: c.Key) -> c.Key:
    name = key.name.removesuffix(ANOTHER) if key.kind == "Pod" else key.name
    return c.Key(kind=key.kind, namespace=key.namespace, name=name)


# ---- messages ----
def _key(key: Key) -> c.Key:
    return c.Key(kind=key.kind, namespace=key.namespace, name=key.name)


def _headroom(before: dict[str, whatif.Room], after: dict[str, whatif.Room]) -> Iterator[c.Headroom]:
    for name, then in after.items():
        room = before.get(name, whatif.Room())
        yield c.Headroom(
            resource=name,
            free_before=room.free,
            free_after=then.free,
            largest_before=room.largest,
            largest_after=then.largest,
        )


def _fit_result(key: c.Key, found: fit.Fit) -> c.FitResult:
    nodes = [c.NodeCount(node=node, count=count) for node, count in sorted(found.nodes.items())]
    return c.FitResult(key=key, count=found.count, at_least=not found.reason, reason=found.reason, nodes=nodes)


def _move(move: rebalance.Move, pod: o.Pod, owner: c.Key) -> c.Move:
    key = c.Key(kind="Pod", namespace=pod.metadata.namespace, name=pod.metadata.name)
    move_from: dict[str, str] = {"from": move.source}
    return c.Move(pod=key, uid=move.uid, owner=owner, to=move.target, before=move.before, after=move.after, **move_from)
