"""Assignments in order, and statuses until they are acknowledged."""

from __future__ import annotations

from shoal.agent.assignments import Assembler, Broken, Change, Gap, Stale, Taken
from shoal.agent.outbox import MAX_PODS, Outbox
from shoal.agent.state import NodeRange, Position
from shoal.proto.v1 import session_pb2 as s
from tests.agents import make_pod


def pod(uid: str) -> s.AssignedPod:
    return s.AssignedPod(uid=uid, pod=make_pod(uid=uid).SerializeToString())


def at(revision: int, epoch: int = 1) -> s.Position:
    return s.Position(epoch=epoch, revision=revision)


def complete(revision: int, *uids: str, part: int = 0, last: bool = True, epoch: int = 1) -> s.Assignments:
    return s.Assignments(
        kind=s.Assignments.COMPLETE,
        results_in=at(revision, epoch),
        part=part,
        last=last,
        upsert_pods=[pod(uid) for uid in uids],
    )


def increment(before: int, after: int, *uids: str, remove: tuple[str, ...] = ()) -> s.Assignments:
    return s.Assignments(
        kind=s.Assignments.INCREMENTAL,
        applies_to=at(before),
        results_in=at(after),
        upsert_pods=[pod(uid) for uid in uids],
        remove_pods=remove,
    )


def uids(taken: Taken) -> list[str]:
    assert isinstance(taken, Change)
    return list(taken.pods)


def test_parts_are_applied_when_the_last_has_come() -> None:
    assembler = Assembler(Position(1, 5))
    assert assembler.take(complete(9, "a", last=False)) is None
    assert assembler.take(complete(9, "b", part=1, last=False)) is None
    assert assembler.position == Position(1, 5)
    taken = assembler.take(complete(9, "c", part=2))
    assert uids(taken) == ["a", "b", "c"]
    assert assembler.position == Position(1, 9)


def test_a_part_out_of_order_asks_once_for_everything() -> None:
    assembler = Assembler(Position())
    assert assembler.take(complete(9, "a", last=False)) is None
    assert isinstance(assembler.take(complete(9, "c", part=2)), Gap)
    assert assembler.take(complete(9, "d", part=3)) is None
    assert uids(assembler.take(complete(10, "x"))) == ["x"]


def test_parts_of_two_completes_are_not_mixed() -> None:
    assembler = Assembler(Position())
    assembler.take(complete(9, "a", last=False))
    assert isinstance(assembler.take(complete(10, "b", part=1)), Gap)
    assembler = Assembler(Position())
    assembler.take(complete(9, "a", last=False))
    assert assembler.take(complete(10, "b", last=False)) is None  # a new one begins
    assert uids(assembler.take(complete(10, "c", part=1))) == ["b", "c"]


def test_what_is_older_is_refused_also_a_complete() -> None:
    assembler = Assembler(Position(2, 5))
    assert isinstance(assembler.take(complete(900, "a", epoch=1)), Stale)
    assert isinstance(assembler.take(complete(4, "a", epoch=2)), Stale)
    assert uids(assembler.take(complete(5, "a", epoch=2))) == ["a"]


def test_increments_follow_each_other() -> None:
    assembler = Assembler(Position())
    assembler.take(complete(5))
    taken = assembler.take(increment(5, 7, "a", remove=("b",)))
    assert uids(taken) == ["a"]
    assert isinstance(taken, Change) and taken.removed_pods == ["b"] and not taken.complete
    assert assembler.take(increment(5, 7, "a")) is None  # it comes twice
    assert uids(assembler.take(increment(7, 8, "c"))) == ["c"]


def test_news_of_the_node_table_alone_leave_the_position_as_it_is() -> None:
    assembler = Assembler(Position())
    assembler.take(complete(5))
    message = increment(5, 5)
    message.upsert_nodes.add(name="n2", address="10.0.0.2", pod_cidr="10.244.2.0/24")
    taken = assembler.take(message)
    assert isinstance(taken, Change) and list(taken.nodes) == ["n2"] and taken.position == Position(1, 5)
    assert uids(assembler.take(increment(5, 7, "a"))) == ["a"]
    assert assembler.take(message) is None  # it has been overtaken


def test_a_gap_is_asked_for_once_until_a_complete_comes() -> None:
    assembler = Assembler(Position())
    assembler.take(complete(5))
    assert isinstance(assembler.take(increment(6, 7)), Gap)
    assert assembler.take(increment(7, 8)) is None
    assert assembler.take(increment(5, 9)) is None
    assembler.take(complete(9))
    assert isinstance(assembler.take(increment(10, 11)), Gap)


def test_an_increment_before_any_complete_of_the_session_is_a_gap() -> None:
    assert isinstance(Assembler(Position(1, 5)).take(increment(5, 6)), Gap)


def test_bytes_that_are_not_the_pod_are_refused() -> None:
    wrong = complete(9)
    wrong.upsert_pods.add(uid="a", pod=b"\xff\xff\xff")
    assert isinstance(Assembler(Position()).take(wrong), Broken)
    swapped = complete(9)
    swapped.upsert_pods.add(uid="a", pod=make_pod(uid="b").SerializeToString())
    taken = Assembler(Position()).take(swapped)
    assert isinstance(taken, Broken) and "those of 'b'" in taken.why
    assert isinstance(Assembler(Position()).take(s.Assignments()), Broken)


def test_the_node_table_comes_along() -> None:
    message = complete(9)
    message.upsert_nodes.add(name="n2", address="10.0.0.2", pod_cidr="10.244.2.0/24")
    taken = Assembler(Position()).take(message)
    assert isinstance(taken, Change) and taken.nodes == {"n2": NodeRange("10.0.0.2", "10.244.2.0/24")}


# ---- outbox ----
def report(uid: str, phase: str = "Running") -> s.PodReport:
    message = s.PodReport(uid=uid)
    message.status.phase = phase
    return message


def sent(outbox: Outbox) -> s.StatusReport:
    message = outbox.take()
    assert message is not None
    return message


def test_only_the_newest_status_of_a_pod_is_sent_and_numbers_grow() -> None:
    outbox = Outbox(7)
    outbox.put(report("a", "Pending"))
    outbox.put(report("a"))
    outbox.put(report("b"))
    first = sent(outbox)
    assert [(pod.uid, pod.status.phase) for pod in first.pods] == [("a", "Running"), ("b", "Running")]
    assert (first.sequence.agent_start, first.sequence.counter) == (7, 1)
    assert outbox.take() is None and not outbox.dirty
    outbox.put(report("a"))
    assert sent(outbox).sequence.counter == 2


def test_what_is_not_acknowledged_is_sent_again_on_the_next_session() -> None:
    outbox = Outbox(7)
    outbox.put(report("a"))
    first = sent(outbox)
    outbox.put(report("b", "Pending"))
    second = sent(outbox)
    outbox.put(report("b"))
    outbox.acknowledge(first.sequence)
    assert outbox.unacknowledged == 1
    outbox.new_session()
    again = sent(outbox)
    assert [(pod.uid, pod.status.phase) for pod in again.pods] == [("b", "Running")]
    outbox.acknowledge(second.sequence)  # late, for what is no longer the newest
    assert outbox.unacknowledged == 1
    outbox.acknowledge(again.sequence)
    assert outbox.unacknowledged == 0
    outbox.new_session()
    assert not outbox.dirty


def test_an_acknowledgement_of_another_start_says_nothing() -> None:
    outbox = Outbox(7)
    outbox.put(report("a"))
    sent(outbox)
    outbox.acknowledge(s.Sequence(agent_start=6, counter=99))
    assert outbox.unacknowledged == 1


def test_reports_are_bounded() -> None:
    outbox = Outbox(1)
    for number in range(MAX_PODS + 1):
        outbox.put(report(str(number)))
    assert len(sent(outbox).pods) == MAX_PODS
    assert len(sent(outbox).pods) == 1
