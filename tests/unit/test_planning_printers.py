"""What the planning verbs print."""

from __future__ import annotations

from shoal.deploy.cli.fit import _lines as fit_lines
from shoal.deploy.cli.printers import plans
from shoal.deploy.cli.rebalance import _lines as rebalance_lines
from shoal.proto.v1 import cluster_pb2 as c

WEB = c.Key(kind="Deployment", namespace="default", name="web")


def pod(fate: str, node: str = "", name: str = "", reason: str = "", owner: c.Key = WEB) -> c.PlannedPod:
    key = c.Key(kind="Pod", namespace="default", name=name)
    return c.PlannedPod(fate=fate, key=key, uid=name, owner=owner, node=node, reason=reason)


def test_a_plan_tells_objects_then_other_pods_then_images() -> None:
    low = c.Key(kind="ReplicaSet", namespace="batch", name="low")
    plan = c.PlanResponse(notes=["something to know"])
    plan.objects.add(key=WEB, action="configured", differences=["spec.replicas changed (1 -> 3)"])
    plan.objects.add(key=c.Key(kind="ConfigMap", name="conf"), action="unchanged")
    plan.pods.extend([pod("created", "n1"), pod("created", "n1"), pod("created", "n2")])
    plan.pods.extend([pod("deleted", "n1", "web-a"), pod("pending", reason="0/2 nodes are available.")])
    plan.pods.append(pod("preempted", "n2", "low-1", "makes room for pod default/web-x", low))
    plan.images.add(node="n1", image="docker.io/library/web:2", bytes=12_000_000)
    plan.images.add(node="n2", image="docker.io/library/web:2")
    assert list(plans.plan_lines(plan, wide=False)) == [
        "deployment/web would be changed",
        "  spec.replicas changed (1 -> 3)",
        "  3 pods to create on n1 (2), n2 (1)",
        "  1 pod left pending",
        "    0/2 nodes are available.",
        "  1 pod to delete from n1 (1): web-a",
        "configmap/conf stays as it is",
        "replicaset/low (namespace batch)",
        "  1 pod evicted for others from n2 (1): low-1",
        "    makes room for pod default/web-x",
        "images to fetch: 2 (12MB, 1 of unknown size)",
        "  n1   docker.io/library/web:2   12MB",
        "  n2   docker.io/library/web:2   ?",
        "note: something to know",
    ]
    wide = list(plans.plan_lines(plan, wide=True))
    assert wide.count("    a new pod on n1") == 2
    assert "    pod/web-a from n1" in wide
    assert plans.summary(plan.objects, plan.pods) == (
        "objects: 1 to change, 1 unchanged; pods: 3 to create, 1 pending, 1 preempted, 1 to delete"
    )


def test_many_nodes_are_counted_and_text_from_elsewhere_is_tamed() -> None:
    found = [pod("created", f"n{number:02}") for number in range(20)] + [pod("pending", reason="a\x1b[2Jb")]
    lines = list(plans.owners(found, wide=False))
    assert lines[1].endswith("n11 (1) and 8 more nodes")
    assert "\x1b" not in "".join(lines)


def test_refused_objects_say_why() -> None:
    refused = c.PlannedObject(key=WEB, failure=c.Failure(reason="Invalid", message="no image"))
    assert list(plans.plan_lines(c.PlanResponse(objects=[refused]), wide=False)) == [
        "deployment/web would be refused: no image"
    ]
    assert plans.summary([refused], []) == "objects: 1 refused; pods: none touched"


def test_headroom_has_units() -> None:
    rooms = [
        c.Headroom(resource="cpu", free_before=2000, free_after=1500, largest_before=1000, largest_after=900),
        c.Headroom(resource="memory", free_before=3 << 30, free_after=512 << 20),
        c.Headroom(resource="shoal.dev/gpu", free_before=4, free_after=1),
    ]
    cells = [line.split() for line in plans.headroom_lines(rooms)][1:]
    assert cells == [
        ["cpu", "2", "1500m", "1", "900m"],
        ["memory", "3.0Gi", "512.0Mi", "0", "0"],
        ["shoal.dev/gpu", "4", "1", "0", "0"],
    ]


def test_what_fits_is_counted_in_words() -> None:
    nodes = [c.NodeCount(node=f"n{number:02}", count=1) for number in range(22)]
    full = c.FitResult(key=WEB, count=22, nodes=nodes, reason="0/22 nodes are available.")
    lines = fit_lines(full, wide=False)
    assert lines[0] == "deployment/web: 22 more pods fit"
    assert lines[-2:] == ["  and 2 more nodes (-o wide lists all)", "  the next one: 0/22 nodes are available."]
    assert len(fit_lines(full, wide=True)) == 24
    assert fit_lines(c.FitResult(key=WEB, count=1, reason="no"), wide=False)[0] == "deployment/web: 1 more pod fits"
    assert fit_lines(c.FitResult(key=WEB, count=7, at_least=True), wide=False) == [
        "deployment/web: at least 7 more pods fit"
    ]


def test_no_moves_are_told_with_their_reason() -> None:
    plan = c.RebalanceResponse(nodes=[c.NodeLoad(node="n1", before=0.5, after=0.5)], stopped="nothing helps")
    assert list(rebalance_lines(plan, wide=False)) == ["fullest node: 50% now, 50% after 0 moves; nothing helps"]
    assert list(rebalance_lines(c.RebalanceResponse(stopped="there is none"), wide=False)) == [
        "fullest node: 0% now, 0% after 0 moves; there is none"
    ]
