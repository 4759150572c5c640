"""All controllers, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Callable

from shoal.master.controllers import (
    deaths,
    deployment,
    disruption,
    eviction,
    gc,
    node,
    podgc,
    podgroup,
    replicaset,
    storage,
)
from shoal.master.controllers.base import Controller, Rng
from shoal.master.controllers.node import Beats


def all_controllers(rng: Rng, beats: Callable[[], Beats], deaths_kept_s: float) -> list[Controller]:
    """`beats` gives what the leader has heard, as of the call."""
    return [
        node.controller(beats),
        eviction.controller(beats),
        deployment.controller(rng),
        replicaset.controller(rng),
        storage.controller(),
        disruption.controller(),
        podgroup.controller(),
        podgc.controller(),
        deaths.controller(deaths_kept_s),
        gc.controller(),
        gc.namespace_controller(),
    ]
