"""Reads the openb trace: the nodes, a workload's pods, and the published table."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.master.scheduler.gpus import WHOLE, Want

DEFAULT_DIR = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "openb"
NODES, TABLE = "openb_node_list_gpu_node.csv", "fgd_expected.csv"
WORKLOADS = "openb_pod_list_*.csv"
LEVELS = (50, 80, 90, 95, 100, 110, 120, 130)  # arrived demand in % of capacity: the columns of the published table


class TraceError(Exception):
    """The folder or a file in it cannot be used; the message says which, where and what to do."""


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    cpu: int  # milli
    memory: int  # MiB
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A pod's request; `models` are the GPU models that it accepts, empty for any."""

    cpu: int
    memory: int
    want: Want
    models: tuple[str, ...]

    @property
    def milli(self) -> int:
        return self.want.milli * self.want.number


def folder() -> Path:
    """SHOAL_TRACE_DIR, or the shared data beside the repository."""
    path = Path(os.environ.get("SHOAL_TRACE_DIR") or DEFAULT_DIR)
    if not path.is_dir():
        raise TraceError(f"{path} is not a folder: name the one with {NODES} and {WORKLOADS} in SHOAL_TRACE_DIR")
    return path


def workloads(path: Path) -> list[Path]:
    """By name, `default` last."""
    found = sorted(path.glob(WORKLOADS), key=lambda file: (name_of(file) == "default", file.name))
    if not found:
        raise TraceError(f"{path}: there is no {WORKLOADS}: name a folder with at least one in SHOAL_TRACE_DIR")
    return found


def name_of(file: Path) -> str:
    return file.stem.removeprefix("openb_pod_list_")


def machines(path: Path) -> list[Machine]:
    columns = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
    found = []
    for row in _rows(path / NODES, columns):
        gpus = row.number("gpu")
        found.append(
            Machine(row.text("sn"), row.number("cpu_milli"), row.number("memory_mib"), gpus, row.text("model"))
        )
    if not any(machine.gpus for machine in found):
        raise TraceError(f"{path / NODES}: no node has a GPU: the share allocated of none cannot be told")
    return found


def asks(file: Path) -> list[Ask]:
    columns = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")
    found = []
    for row in _rows(file, columns):
        count, milli = row.number("num_gpu"), row.number("gpu_milli")
        if count and not 0 < milli <= WHOLE:
            raise row.wrong("gpu_milli", f"a pod with GPUs asks for 1 to {WHOLE} of each")
        if count > 1 and milli != WHOLE:
            raise row.wrong("gpu_milli", f"a pod with several GPUs asks for {WHOLE}, whole ones")
        want = Want(milli, count) if count else Want(0, 0)
        models = tuple(sorted(set(row.text("gpu_spec").split("|")) - {""}))
        found.append(Ask(row.number("cpu_milli"), row.number("memory_mib"), want, models))
    if not any(ask.milli for ask in found):
        raise TraceError(f"{file}: no pod asks for a GPU: its demand cannot reach a share of the capacity")
    return found


def published(path: Path) -> dict[tuple[str, str], dict[int, float]]:
    """The means over the table's seeds by (workload, policy) and level; empty when there is no table."""
    if not (path / TABLE).is_file():
        return {}
    sums: dict[tuple[str, str], list[list[float]]] = {}
    for row in _rows(path / TABLE, ("workload", "sc_policy", *map(str, LEVELS))):
        workload = row.text("workload").removeprefix("openb_pod_list_")
        policy = row.text("sc_policy").partition("-")[2].lower()
        sums.setdefault((workload, policy), []).append([row.share(str(level)) for level in LEVELS])
    return {
        key: {level: sum(column) / len(rows) for level, column in zip(LEVELS, zip(*rows, strict=True), strict=True)}
        for key, rows in sums.items()
    }


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a file, which knows where it stands."""

    file: Path
    line: int
    values: dict[str, str | None]

    def wrong(self, column: str, why: str) -> TraceError:
        value = self.values[column]
        return TraceError(f"{self.file}:{self.line}: {column} is {value!r}: {why}; correct the line")

    def text(self, column: str) -> str:
        value = self.values[column]
        if value is None:
            raise self.wrong(column, "the line is too short")
        return value.strip()

    def number(self, column: str) -> int:
        text = self.text(column)
        if not text.isascii() or not text.isdigit():
            raise self.wrong(column, "a whole number of at least 0 is needed")
        return int(text)

    def share(self, column: str) -> float:
        try:
            return float(self.text(column))
        except ValueError:
            raise self.wrong(column, "a number is needed") from None


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(
                    f"{file}:1: the column {', '.join(missing)} is missing: the file needs {','.join(columns)}"
                )
            for values in reader:
                yield _Row(file, reader.line_num, values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{file} cannot be read: {error}: put a readable CSV file there") from error
