"""Random lives are journalled and made again from the journal alone: every decision is the same."""

from __future__ import annotations

import json
import os
import zlib

from shoal.master.scheduler.classes import PodClass
from shoal.master.scheduler.core import Scheduler
from shoal.master.scheduler.journal import Entry, State, Writer, read
from shoal.master.scheduler.plain import decode, encode
from shoal.master.scheduler.profiles import BUILT_IN
from shoal.master.scheduler.replay import Report, replay
from shoal.master.scheduling.journal import Journal
from tests.reference import bridge
from tests.reference.generate import FEATURES, case
from tests.reference.history import History
from tests.reference.scheduler import schedule

SEEDS = int(os.environ.get("SHOAL_PROPERTY_SEEDS", "2000")) // 20
STEPS = 25
FULL = 12_000  # bytes of a file, so that a life has several


class Memory:
    """A sink whose files are lists of lines."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self._writer = Writer("test")

    def begin(self, state: State) -> None:
        self.files.append(list(self._writer.begin(state)))
        self._before = self.size()

    def put(self, entry: Entry) -> bool:
        self.files[-1] += self._writer.lines(entry)
        return True

    def size(self) -> int:
        return sum(map(len, self.files[-1]))

    def wants_state(self) -> bool:
        return bool(self.files) and self.size() - self._before > FULL


def lived(seed: int) -> tuple[Memory, int]:
    """A life's journal, and how many plans were made in it."""
    made = case(seed, FEATURES)
    life, snapshot, scheduler, sink = History.of(made), bridge.snapshot_of(made.cluster), Scheduler(), Memory()
    journal = Journal(sink, BUILT_IN, lambda: 0.0)
    journal.watch(snapshot)
    journal.applied(1, [])
    for number in range(STEPS):
        events = life.step()
        snapshot.apply(events)
        journal.applied(number, events)
        if number % 2:
            queue = life.queue()
            waiting = [bridge.waiting(pod) for pod in queue]
            journal.planned(number, number, waiting, scheduler.schedule(snapshot, waiting))
            schedule(made.cluster, queue)  # the plain cluster goes the same way
            told = life.settle()
            for uid in life.undone:
                snapshot.undo(uid)
                journal.undone(uid)
            life.undone.clear()
            snapshot.apply(told)
            journal.applied(number, told)
    return sink, STEPS // 2


def again(lines: list[bytes], profile: str = "") -> Report:
    return replay(read(lines), BUILT_IN[profile] if profile else None)


def test_a_life_is_made_again_from_its_journal() -> None:
    files = 0
    for seed in range(SEEDS):
        sink, plans = lived(seed)
        reports = [again(lines) for lines in sink.files]
        assert [report.differences for report in reports] == [[]] * len(reports), f"seed {seed}"
        assert sum(report.plans for report in reports) == plans, f"seed {seed}"
        files += len(reports)
    assert files > SEEDS, "some lives must have filled a file"


def test_every_altered_decision_is_found() -> None:
    """One pod's node is changed in the journal, its checksum made right: this pod, and no other, is told of."""
    altered = 0
    for seed in range(0, SEEDS, 2):
        sink, _ = lived(seed)
        lines = sink.files[-1]
        for index, line in enumerate(lines):
            said = json.loads(line[9:])
            if said["t"] == "plan" and said["bound"] and altered < 200:
                said["bound"][0][1] = "elsewhere"
                text = json.dumps(said).encode()
                changed = [*lines[:index], b"%08x %s\n" % (zlib.crc32(text), text), *lines[index + 1 :]]
                first = again(changed).differences[0]
                assert (first.line, first.recorded.node) == (index + 1, "elsewhere"), f"seed {seed}"
                altered += 1
                break
    assert altered > 10


def test_another_profile_decides_otherwise_and_the_same_again() -> None:
    other = 0
    for seed in range(0, SEEDS, 2):
        sink, _ = lived(seed)
        first, second = again(sink.files[0], "bin-packing"), again(sink.files[0], "bin-packing")
        assert first.differences == second.differences, f"seed {seed}"
        other += len(first.differences)
    assert other > 10


def test_classes_are_plain_data() -> None:
    seen: set[PodClass] = set()
    for seed in range(SEEDS):
        seen |= {pod.what for pod in case(seed, FEATURES).queue}
    for pods in seen:
        assert decode(json.loads(json.dumps(encode(pods)))) == pods
