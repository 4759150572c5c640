"""PodDisruptionBudget: how many of its pods may be taken away now (Kubernetes' disruption controller)."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.master.controllers.base import (
    Controller,
    Outcome,
    controller_of,
    fetch,
    own_key,
    ready,
    seconds,
    set_condition,
    terminating,
)
from shoal.master.controllers.claims import candidates
from shoal.master.model import FINAL_PHASES, Change, Event, Key, Modify, Object, View, key_of
from shoal.proto.selector import from_message
from shoal.proto.v1 import objects_pb2 as o

KIND = "PodDisruptionBudget"
ALLOWED = "DisruptionAllowed"
EVICTION_SECONDS = 120.0  # for so long an eviction that was granted counts although its pod does not leave yet
OWNERS = ("ReplicaSet", "Deployment")  # whose replicas are what is expected


def controller() -> Controller:
    watches = {KIND: own_key, "Pod": pod_keys} | dict.fromkeys(OWNERS, owner_keys)
    return Controller("disruption", watches, reconcile)


def pod_keys(view: View, event: Event) -> Iterable[Key]:
    """The budgets of a pod that came, went, or is healthy or not otherwise than before."""
    budgets = list(_budgets(view, event.key.namespace))
    if not budgets:
        return ()
    pods = [r.message for r in (event.old, event.new) if r is not None and isinstance(r.message, o.Pod)]
    if len(pods) == 2 and _counts(pods[0]) == _counts(pods[1]):
        return ()
    return [key_of(budget) for budget in budgets if any(selects(budget, pod) for pod in pods)]


def owner_keys(view: View, event: Event) -> Iterable[Key]:
    """The namespace's budgets, when an owner wants another number of pods."""
    if _replicas(event.old.message if event.old else None) == _replicas(event.new.message if event.new else None):
        return ()
    return [key_of(budget) for budget in _budgets(view, event.key.namespace)]


def _counts(pod: o.Pod) -> tuple[object, ...]:
    return ready(pod), pod.status.phase in FINAL_PHASES, terminating(pod), dict(pod.metadata.labels)


def _budgets(view: View, namespace: str) -> Iterable[o.PodDisruptionBudget]:
    return (found for found in view.all(KIND, namespace) if isinstance(found, o.PodDisruptionBudget))


def selects(budget: o.PodDisruptionBudget, pod: o.Pod) -> bool:
    """No selector selects no pod, an empty one every pod of the namespace (policy/v1)."""
    return budget.spec.HasField("selector") and from_message(budget.spec.selector).matches(pod.metadata.labels)


def reconcile(view: View, key: Key, now: float) -> Outcome:
    """Counts anew; the status says what an eviction may do."""
    budget = fetch(view, o.PodDisruptionBudget, key)
    if budget is None or terminating(budget):
        return Outcome()
    pods = pods_of(view, budget)
    evicted = {
        pod.metadata.name: at
        for pod in pods
        if (at := _granted(budget, pod)) is not None and not terminating(pod) and seconds(at) + EVICTION_SECONDS > now
    }
    healthy = sum(ready(pod) and not terminating(pod) and pod.metadata.name not in evicted for pod in pods)
    expected, desired = expectation(view, budget, pods)
    allowed = max(0, healthy - desired) if expected else 0
    wants = o.PodDisruptionBudgetStatus(
        observedGeneration=budget.metadata.generation,
        disruptedPods=evicted,
        disruptionsAllowed=allowed,
        currentHealthy=healthy,
        desiredHealthy=desired,
        expectedPods=expected,
        conditions=budget.status.conditions,
    )
    word = ("True", "SufficientPods") if allowed else ("False", "InsufficientPods")
    set_condition(wants.conditions, o.Condition(type=ALLOWED, status=word[0], reason=word[1]), now)
    ends = [seconds(at) + EVICTION_SECONDS - now for at in evicted.values()]
    return Outcome(_write(budget, wants), again=min(ends, default=None))


def _granted(budget: o.PodDisruptionBudget, pod: o.Pod) -> o.Time | None:
    return budget.status.disruptedPods.get(pod.metadata.name)


def _write(budget: o.PodDisruptionBudget, wants: o.PodDisruptionBudgetStatus) -> list[Change]:
    if wants == budget.status:
        return []

    before = budget.status

    def edit(found: Object) -> bool:
        # An eviction that was granted meanwhile must not be forgotten: its event brings the next look
        if not isinstance(found, o.PodDisruptionBudget) or found.status != before:
            return False
        found.status.CopyFrom(wants)
        return True

    return [Modify(key_of(budget), edit, uid=budget.metadata.uid)]


def pods_of(view: View, budget: o.PodDisruptionBudget) -> list[o.Pod]:
    """Those that it selects and that have not ended."""
    if not budget.spec.HasField("selector"):
        return []
    selector = from_message(budget.spec.selector)
    found = candidates(view, "Pod", budget.metadata.namespace, selector)
    pods = (pod for pod in found if isinstance(pod, o.Pod) and pod.status.phase not in FINAL_PHASES)
    return [pod for pod in pods if selector.matches(pod.metadata.labels)]


def expectation(view: View, budget: o.PodDisruptionBudget, pods: list[o.Pod]) -> tuple[int, int]:
    """(pods that there should be, healthy ones that must stay). Percentages are of what the pods' owners want, and
    round up, both ways; a pod without such an owner counts as one (Kubernetes leaves it out)."""
    spec = budget.spec
    if not spec.HasField("maxUnavailable"):
        least = spec.minAvailable
        if least.WhichOneof("value") != "text":
            return len(pods), least.number
        expected = wanted(view, pods)
        return expected, scaled(least, expected)
    expected = wanted(view, pods)
    return expected, max(0, expected - scaled(spec.maxUnavailable, expected))


def scaled(value: o.IntOrString, whole: int) -> int:
    """A number as it is, a percentage of `whole`, rounded up."""
    if value.WhichOneof("value") == "text":
        return -(-int(value.text.removesuffix("%")) * whole // 100)
    return value.number


def wanted(view: View, pods: list[o.Pod]) -> int:
    """The sum of what the pods' owners want; the owner of a ReplicaSet speaks for it."""
    owners: dict[str, int] = {}
    alone = 0
    for pod in pods:
        owner = _owner(view, pod)
        if owner is None:
            alone += 1
        else:
            owners[owner.metadata.uid] = _replicas(owner)
    return alone + sum(owners.values())


def _owner(view: View, obj: Object) -> Object | None:
    """The topmost controller that has replicas."""
    found: Object | None = None
    for _ in OWNERS:
        ref = controller_of(obj)
        owner = view.by_uid(ref.uid) if ref is not None and ref.kind in OWNERS else None
        if owner is None:
            break
        found = obj = owner
    return found


def _replicas(obj: Object | None) -> int:
    if not isinstance(obj, o.ReplicaSet | o.Deployment):
        return 0
    return obj.spec.replicas if obj.spec.HasField("replicas") else 1
