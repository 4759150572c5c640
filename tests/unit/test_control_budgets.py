"""PodDisruptionBudgets and PodGroups: what their controllers count, and when they look again."""

from __future__ import annotations

import pytest

from shoal.master.controllers import disruption, podgroup
from shoal.master.controllers.base import Controller, condition, instant
from shoal.master.model import Create, Key, Modify, Object
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import World, deployment, meta, pod, reference, replicaset

NOW = 1000.0
BUDGET, GROUP = Key("PodDisruptionBudget", "default", "b"), Key("PodGroup", "default", "g")


def budget(least: int | str | None = None, most: int | str | None = None, app: str | None = "web") -> Object:
    made = o.PodDisruptionBudget(apiVersion="policy/v1", kind=BUDGET.kind, metadata=meta(BUDGET.kind, "b", {}))
    for given, field in ((least, made.spec.minAvailable), (most, made.spec.maxUnavailable)):
        if isinstance(given, str):
            field.text = given
        elif given is not None:
            field.number = given
    if app is not None:
        made.spec.selector.SetInParent()
        if app:
            made.spec.selector.matchLabels["app"] = app
    return made


def settle(world: World, controller: Controller, now: float = NOW) -> int:
    """Runs the controller by its own watches until nothing is left to do; how often it was called."""
    calls = 0
    while world.events:
        events, world.events = world.events, []
        watches = controller.watches
        keys = {key for e in events if e.key.kind in watches for key in watches[e.key.kind](world, e)}
        for key in sorted(keys):
            calls += 1
            world.apply(controller.reconcile(world, key, now).changes)
        assert calls < 100
    return calls


def status(world: World) -> o.PodDisruptionBudgetStatus:
    found = world.get(*BUDGET)
    assert isinstance(found, o.PodDisruptionBudget)
    return found.status


def numbers(world: World) -> tuple[int, int, int, int]:
    """(expected, desired, healthy, allowed) once all is settled."""
    settle(world, disruption.controller())
    found = status(world)
    return found.expectedPods, found.desiredHealthy, found.currentHealthy, found.disruptionsAllowed


def replicas(count: int, ready: int, owner: Object | None = None) -> list[Object]:
    return [pod(f"p{n}", owner=owner, node="n1", phase="Running", is_ready=n < ready, app="web") for n in range(count)]


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (2, None, (3, 2, 3, 1)),
        (5, None, (3, 5, 3, 0)),
        (0, None, (3, 0, 3, 3)),
        ("50%", None, (4, 2, 3, 1)),  # of the four that the owner wants
        ("51%", None, (4, 3, 3, 0)),  # rounded up
        (None, 1, (4, 3, 3, 0)),
        (None, "25%", (4, 3, 3, 0)),
        (None, "26%", (4, 2, 3, 1)),  # rounded up too: two may go
        (None, "100%", (4, 0, 3, 3)),
        (None, 9, (4, 0, 3, 3)),
    ],
)
def test_what_a_budget_allows(
    least: int | str | None, most: int | str | None, expected: tuple[int, int, int, int]
) -> None:
    rs = replicaset(replicas=4)
    assert numbers(World([rs, *replicas(3, 3, rs), budget(least, most)])) == expected


def test_the_owner_of_a_replica_set_says_what_is_expected() -> None:
    """In a rollout there are two ReplicaSets, but one Deployment."""
    whole, old, new = deployment(replicas=3), replicaset("old", 2), replicaset("new", 2)
    for rs in (old, new):
        rs.metadata.ownerReferences.append(reference(whole))
    pods = [
        pod(f"{rs.metadata.name}-{n}", owner=rs, node="n", is_ready=True, app="web") for rs in (old, new) for n in "ab"
    ]
    world = World([whole, old, new, *pods, budget(None, 1)])
    assert numbers(world) == (3, 2, 4, 2)
    world.commit(Modify(Key("Deployment", "default", "web"), lambda found: scale(found, 9)))
    assert numbers(world) == (9, 8, 4, 0)


def scale(found: Object, to: int) -> bool:
    assert isinstance(found, o.Deployment)
    found.spec.replicas = to
    return True


def test_pods_without_an_owner_count_as_one_each() -> None:
    assert numbers(World([*replicas(3, 3), budget(None, "34%")])) == (3, 1, 3, 2)


def test_selectors_none_and_empty() -> None:
    other = pod("other", node="n1", is_ready=True, app="db")
    assert numbers(World([*replicas(1, 1), other, budget(1, app=None)])) == (0, 1, 0, 0)
    assert numbers(World([*replicas(1, 1), other, budget(1, app="")])) == (2, 1, 2, 1)


def test_a_budget_follows_its_pods_and_only_them() -> None:
    world = World([*replicas(3, 2), budget(1)])
    assert numbers(world) == (3, 1, 2, 1)

    def leave(found: Object) -> bool:
        found.metadata.deletionTimestamp.CopyFrom(instant(NOW))
        return True

    world.commit(Modify(Key("Pod", "default", "p0"), leave))
    assert numbers(world) == (3, 1, 1, 0)
    held = condition(status(world).conditions, "DisruptionAllowed")
    assert held is not None and (held.status, held.reason) == ("False", "InsufficientPods")
    world.commit(Create(pod("stranger", is_ready=True, app="db")))
    assert settle(world, disruption.controller()) == 0

    def say(found: Object) -> bool:
        assert isinstance(found, o.Pod)
        found.status.podIP = "10.0.0.1"
        return True

    world.commit(Modify(Key("Pod", "default", "p1"), say))
    assert settle(world, disruption.controller()) == 0


def test_an_eviction_that_was_granted_counts_until_its_pod_leaves_or_time_is_up() -> None:
    granted = budget(1)
    assert isinstance(granted, o.PodDisruptionBudget)
    for name in ("p0", "gone"):
        granted.status.disruptedPods[name].CopyFrom(instant(NOW))
    world = World([*replicas(3, 3), granted])
    assert numbers(world) == (3, 1, 2, 1)
    assert list(status(world).disruptedPods) == ["p0"]
    assert disruption.reconcile(world, BUDGET, NOW + 1).again == disruption.EVICTION_SECONDS - 1
    world.apply(disruption.reconcile(world, BUDGET, NOW + disruption.EVICTION_SECONDS).changes)
    assert (status(world).currentHealthy, dict(status(world).disruptedPods)) == (3, {})


# ---- groups ----
def group(least: int = 2) -> o.PodGroup:
    made = o.PodGroup(apiVersion="scheduling.x-k8s.io/v1alpha1", kind="PodGroup", metadata=meta("PodGroup", "g", {}))
    made.spec.minMember = least
    return made


def member(name: str, phase: str = "Pending", node: str = "") -> o.Pod:
    made = pod(name, owner=replicaset(), phase=phase, node=node)
    made.metadata.labels[podgroup.LABEL] = "g"
    return made


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([], "Pending"),
        ([("Pending", "")], "Pending"),
        ([("Pending", ""), ("Pending", "")], "Scheduling"),
        ([("Pending", "n"), ("Pending", "")], "Scheduling"),
        ([("Pending", "n"), ("Running", "n")], "Scheduled"),
        ([("Running", "n"), ("Running", "n"), ("Pending", "")], "Running"),
        ([("Running", "n"), ("Succeeded", "n")], "Running"),
        ([("Running", "n"), ("Failed", "n")], "Failed"),
        ([("Succeeded", "n"), ("Succeeded", "n")], "Finished"),
    ],
)
def test_the_phase_of_a_group(members: list[tuple[str, str]], expected: str) -> None:
    world = World([group(), *(member(f"m{n}", *given) for n, given in enumerate(members))])
    settle(world, podgroup.controller())
    found = world.get(*GROUP)
    assert isinstance(found, o.PodGroup)
    assert found.status.phase == expected
    assert found.status.scheduled == sum(node == "n" and phase in ("Pending", "Running") for phase, node in members)
    assert found.status.occupiedBy == ("ReplicaSet/web" if members else "")
    assert found.status.HasField("scheduleStartTime") == (expected == "Scheduling")


def test_a_group_follows_its_members() -> None:
    world = World([group(1)])
    settle(world, podgroup.controller())
    world.commit(Create(member("m", "Running", "n")))
    assert settle(world, podgroup.controller()) == 2  # the pod's event, and that of the status which it changed
    world.commit(Create(pod("stranger", phase="Running")))
    assert settle(world, podgroup.controller()) == 0
    assert world.unchanged()
