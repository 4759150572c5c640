"""What `why` prints of a decision, and how it goes together with the rest of the story."""

from __future__ import annotations

from shoal.deploy.cli.printers import decision, reasons
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.control_world import pod

LACK = "0/3 nodes are available: 3 Insufficient cpu (short of 38m at best)."


def placed() -> c.WhyResponse:
    found = c.WhyResponse(kept=True, node="n1", at=100.0, revision=7, attempts=1, nodes=3, open=2, alike=1)
    for node, least in (("n1", 0.5), ("n2", 0.25)):
        found.best.add(node=node, score=least).parts.add(name="least", weight=1.0, value=least)
    found.rejected.add(reason="Insufficient cpu", nodes=1)
    return found


def pending(*advice: tuple[str, str], **fields: object) -> c.WhyResponse:
    found = c.WhyResponse(kept=True, advised=True, nodes=3, message=LACK, **fields)  # type: ignore[arg-type]
    found.short.add(resource="cpu", amount="38m")
    for text, node in advice:
        found.advice.add(text=text, node=node, change="{}")
    return found


def test_a_placed_pod() -> None:
    assert list(decision.lines(placed(), 160.0)) == [
        "Placed on node n1 60s ago, at once, at revision 7",
        "  2 of 3 nodes could take it",
        "  1 of 3: Insufficient cpu",
        "  best by profile default-scheduler, its score and weight x value of each part:",
        "    n1      0.5000  least +0.5000",
        "    n2      0.2500  least +0.2500",
        "  n1 is ahead of n2 by least (+0.2500)",
    ]


def test_who_made_room_and_how_long_it_waited() -> None:
    found = placed()
    found.waited_seconds, found.attempts, found.alike = 0.19, 2, 3
    found.victims.add(kind="Pod", namespace="default", name="low")
    lines = list(decision.lines(found, 160.0))
    assert lines[0] == "Placed on node n1 60s ago, after 190 ms, attempt 2, at revision 7"
    assert lines[1] == "  evicted to make room for it: default/low"
    assert lines[2] == "  2 of 3 nodes could take it; 3 pods alike were placed in one go"


def test_advice_names_the_node_once_and_wraps() -> None:
    long = f"give it priority 1 or more, evicting {', '.join(f'default/pod-{i}' for i in range(8))} on node n2"
    lines = list(decision.lines(pending(("ask for 462m cpu instead of 500m", "n1"), (long, "n2")), 0.0))
    assert lines[0] == "What would change that, each by itself, as the cluster is now:"
    assert lines[1] == "  - ask for 462m cpu instead of 500m: it then goes to n1"
    assert all(len(line) <= 110 for line in lines)
    assert " ".join(line.strip() for line in lines[2:]) == f"- {long}"


def test_a_shortage_is_told_once() -> None:
    found = pending()
    assert list(decision.lines(found, 0.0)) == [
        "No single change of its requests, selectors, tolerations or terms helps now, nor moving one other pod."
    ]
    found.message = ""  # after a change of leader
    assert next(decision.lines(found, 0.0)) == "The nearest node is short of 38m cpu"


def test_a_gated_pod_is_not_said_to_have_its_turn() -> None:
    found = c.WhyResponse(nodes=3, open=2)
    found.rejected.add(reason="Insufficient cpu", nodes=1)
    assert list(decision.lines(found, 0.0, gated=True)) == [
        "Without its gates, as the cluster is now: 2 of 3 nodes could take it",
        "  1 of 3: Insufficient cpu",
    ]


def test_a_nominated_pod() -> None:
    found = pending(("ask for 123m cpu instead of 520m", "n1"), node="n1", nominated=True)
    found.victims.add(kind="Pod", namespace="default", name="low")
    assert list(decision.lines(found, 0.0)) == [
        "Room is held for it on node n1; it gets it when these have gone: default/low",
        "What would place it at once, each by itself, as the cluster is now:",
        "  - ask for 123m cpu instead of 520m: it then goes to n1",
    ]


def test_who_is_evicted_says_for_whom() -> None:
    made = pod("low", node="n1", phase="Running", is_ready=True)
    said = "Preempted by pod default/vip on node n1"
    made.status.conditions.add(type="DisruptionTarget", status="True", reason="PreemptionByScheduler", message=said)
    assert [(one.what, one.text) for one in reasons.of_pod(made, [], []).findings] == [("PreemptionByScheduler", said)]


def waiting() -> o.Pod:
    made = pod("p")
    made.status.conditions.add(type="PodScheduled", status="False", reason="Unschedulable", message="0/3: 3 old")
    return made


def warning(text: str) -> o.Event:
    return o.Event(type="Warning", reason="FailedScheduling", message=text)


def test_the_schedulers_last_word_replaces_older_ones() -> None:
    story = reasons.of_pod(waiting(), [warning("0/3: 3 older")], [])
    assert [one.text for one in story.findings] == ["0/3: 3 old", "0/3: 3 older"]
    assert reasons.as_decided(story, "") == story
    assert [one.text for one in reasons.as_decided(story, LACK).findings] == [LACK]


def test_why_it_waited_is_no_news_of_a_placed_pod() -> None:
    made = pod("p", node="n1", phase="Running", is_ready=True)
    assert not reasons.of_pod(made, [warning("0/3: 3 old")], []).findings
