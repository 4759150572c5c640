"""What a container's runs come to, in whichever order an agent hears of them."""

from __future__ import annotations

from itertools import permutations

import pytest

from shoal.agent.pods.facts import ContainerFacts
from shoal.agent.runtime.port import ContainerID, ContainerState, Exit, StartError
from shoal.proto.v1 import objects_pb2 as o


def state(attempt: int, *, never: bool = False) -> ContainerState:
    fault = StartError("CreateContainerConfigError", "no such user") if never else None
    end = None if never else Exit(1, 0, False, 100.0 + attempt)
    return ContainerState(ContainerID("uid", "app", attempt), 0, 0.0 if never else 50.0 + attempt, 0, end, fault)


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
def test_restarts_never_go_back_whichever_run_is_heard_of_first(order: tuple[int, ...]) -> None:
    facts = ContainerFacts(o.Container(name="app"))
    for attempt in order:
        facts.learn(state(attempt, never=attempt == 2), 200.0)
    assert facts.restarts == 1
    assert facts.previous is not None and (facts.previous.attempt, facts.previous.code) == (1, 1)
    assert facts.older == {0}
    facts.set_aside()
    assert facts.restarts == 1
    assert facts.next_attempt() == 2
