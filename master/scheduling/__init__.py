"""The scheduler's loop around the pure core: pending pods in, bindings, evictions and reasons out."""

from shoal.master.scheduling.changes import sentence as sentence
from shoal.master.scheduling.decisions import Decision as Decision
from shoal.master.scheduling.decisions import Decisions as Decisions
from shoal.master.scheduling.decisions import Observer as Observer
from shoal.master.scheduling.loop import SchedulingLoop as SchedulingLoop
from shoal.master.scheduling.meter import Meter as Meter
