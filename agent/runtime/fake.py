"""A runtime in memory, for unit tests and simulation: port.Runtime on the loop's time, without I/O or threads.

What a container does is scripted by its first words (or by `script`):

    exit CODE            ends at once             run                 runs until a signal ends it (also: any other word)
    sleep SECONDS [CODE] ends after a while       stubborn            ignores all signals but KILL
    graceful SECONDS     TERM: ends with 0 later  oom SECONDS         is killed for its memory
    fail REASON TEXT     cannot be started           say CODE TEXT     ends at once with TEXT in its termination file

exec knows `echo WORDS`, `cat`, `exit CODE`, `sleep SECONDS`; any other command is not found. The object is the node: it
outlives agents that crash. `gone = True` is a dead spawner: calls raise RuntimeGone, containers go on.
"""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

from shoal.agent.runtime.events import Broadcast
from shoal.agent.runtime.port import (
    ContainerID,
    ContainerSpec,
    ContainerState,
    Exit,
    Exited,
    ProbeRun,
    Resources,
    RuntimeEvent,
    RuntimeFault,
    RuntimeGone,
    Sandbox,
    SandboxSpec,
    Started,
    StartError,
    Usage,
)

FIRST_PID = 1000
UNKNOWN = "ContainerStatusUnknown"
RESOURCES = Resources(peak_memory_bytes=1 << 20, memory_limit_bytes=0, cpu_seconds=0.01)
USAGE = Usage(cpu_seconds=0.0, memory_bytes=1 << 20, pids=1)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one run does: ends by itself after `seconds` with `code`; `term` is the seconds that TERM takes."""

    seconds: float = inf
    code: int = 0
    oom: bool = False
    term: float = 0.0  # inf: ignores it
    term_code: int = 128 + signals.SIGTERM
    start_error: StartError | None = None
    message: str = ""  # in its termination file, when the spec has one


def by_words(spec: ContainerSpec) -> Behaviour:
    """The language of this module's docstring."""
    word, args = spec.argv[0].rpartition("/")[2], list(spec.argv[1:])
    if word == "exit":
        return Behaviour(0.0, int(args[0]))
    if word == "sleep":
        return Behaviour(float(args[0]), int(args[1]) if len(args) > 1 else 0)
    if word == "stubborn":
        return Behaviour(term=inf)
    if word == "graceful":
        return Behaviour(term=float(args[0]), term_code=0)
    if word == "oom":
        return Behaviour(float(args[0]), 128 + signals.SIGKILL, oom=True)
    if word == "say":
        return Behaviour(0.0, int(args[0]), message=" ".join(args[1:]) if spec.termination_path else "")
    if word == "fail":
        return Behaviour(start_error=StartError(args[0], " ".join(args[1:])))
    return Behaviour()


@dataclass(slots=True)
class _Run:
    state: ContainerState
    behaviour: Behaviour
    begun: asyncio.Future[None]
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    listeners: list[FakeAttach] = field(default_factory=list)
    input_closed: bool = False


class FakeRuntime:
    """port.Runtime. `now` is wall time; delays are the running loop's. Deterministic."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        script: Callable[[ContainerSpec], Behaviour] = by_words,
        start_seconds: float = 0.0,
        sandbox_seconds: float = 0.0,
    ) -> None:
        self._gone = False
        self.used: dict[ContainerID, Usage] = {}  # instead of USAGE
        self.specs: dict[ContainerID, ContainerSpec] = {}  # of every run that was ever begun, for assertions
        self.signals: list[tuple[ContainerID, int]] = []  # in the order in which they came
        self._now, self._script = now, script
        self._start_seconds, self._sandbox_seconds = start_seconds, sandbox_seconds
        self._sandboxes: dict[str, Sandbox] = {}
        self._runs: dict[ContainerID, _Run] = {}
        self._missed: list[RuntimeEvent] = []
        self._events = Broadcast()
        self._pid = FIRST_PID

    # -- faults

    @property
    def gone(self) -> bool:
        return self._gone

    @gone.setter
    def gone(self, gone: bool) -> None:
        if gone and not self._gone:
            self._events.emit(RuntimeGone("the fake spawner is gone"))
        self._gone = gone

    def come_back(self) -> None:
        """Ends `gone`; what ended meanwhile is told now."""
        self.gone = False
        missed, self._missed = self._missed, []
        for event in missed:
            self._events.emit(event)

    def crash(self, id: ContainerID, code: int = 1, *, signal: int = 0, oom: bool = False) -> None:
        """The container ends by itself, now."""
        self._end(id, Exit(128 + signal if signal else code, signal, oom, self._now()))

    def reboot(self) -> None:
        """Everything that ran has ended with a lost code; no sandbox is left. Records stay."""
        for id, run in self._runs.items():
            if run.state.start_error is None:
                self._end(id, Exit(128 + signals.SIGKILL, 0, False, self._now(), UNKNOWN))
        self._sandboxes.clear()

    # -- the port

    async def ensure_sandbox(self, spec: SandboxSpec) -> Sandbox:
        self._check()
        await asyncio.sleep(self._sandbox_seconds)
        self._check()
        return self._sandboxes.setdefault(spec.pod_uid, Sandbox(spec.pod_uid, f"/fake/{spec.pod_uid}/net"))

    async def start(self, spec: ContainerSpec) -> ContainerState:
        self._check()
        run = self._runs.get(spec.id)
        if run is None:
            if spec.id.pod_uid not in self._sandboxes:
                raise RuntimeFault(f"pod {spec.id.pod_uid} has no sandbox: call ensure_sandbox first")
            loop = asyncio.get_running_loop()
            run = _Run(ContainerState(spec.id, 0, 0.0, 0, None), self._script(spec), loop.create_future())
            self._runs[spec.id], self.specs[spec.id] = run, spec
            # Not in the caller's task: the node goes on when the agent that asked has crashed.
            run.timers.append(loop.call_later(self._start_seconds, self._begin, run))
        await asyncio.shield(run.begun)
        self._check()
        if run.state.start_error is not None:
            raise run.state.start_error
        return run.state

    def _begin(self, run: _Run) -> None:
        id, loop = run.state.id, asyncio.get_running_loop()
        if run.behaviour.start_error is not None:
            run.state = replace(run.state, start_error=run.behaviour.start_error)
        elif run.state.exit is None:
            self._pid += 1
            at = self._now()
            run.state = replace(run.state, pid=self._pid, started_at=at, start_ticks=self._pid * 100)
            self._tell(Started(id, self._pid, at))
            if run.behaviour.seconds < inf:
                timer = loop.call_later(run.behaviour.seconds, self._end_by_itself, run)
                run.timers.append(timer)
        if not run.begun.done():
            run.begun.set_result(None)

    def _end_by_itself(self, run: _Run) -> None:
        signal = signals.SIGKILL if run.behaviour.oom else 0
        self._end(run.state.id, Exit(run.behaviour.code, int(signal), run.behaviour.oom, self._now()))

    def _end(self, id: ContainerID, exit: Exit) -> None:
        run = self._runs.get(id)
        if run is None or run.state.exit is not None or run.state.start_error is not None:
            return
        for timer in run.timers:
            timer.cancel()
        if run.state.pid and exit.resources is None and exit.reason != UNKNOWN:
            exit = replace(exit, message=run.behaviour.message, resources=RESOURCES)
        run.state = replace(run.state, exit=exit)
        if not run.begun.done():
            run.begun.set_result(None)
        for listener in run.listeners:
            listener.finish(exit.code)
        self._tell(Exited(id, exit))

    def _tell(self, event: RuntimeEvent) -> None:
        if not self.gone:
            self._events.emit(event)
        elif isinstance(event, Exited):
            self._missed.append(event)

    async def signal(self, id: ContainerID, signal: int) -> None:
        self._check()
        self.signals.append((id, int(signal)))
        run = self._runs.get(id)
        if run is None or run.state.pid == 0 or run.state.exit is not None:
            return
        if signal == signals.SIGKILL:
            self._end(id, Exit(128 + signal, int(signal), False, self._now()))
        elif signal == signals.SIGTERM and run.behaviour.term < inf:
            code = run.behaviour.term_code
            number = code - 128 if code > 128 else 0
            loop = asyncio.get_running_loop()
            run.timers.append(
                loop.call_later(run.behaviour.term, lambda: self._end(id, Exit(code, number, False, self._now())))
            )

    async def remove_container(self, id: ContainerID) -> None:
        self._check()
        run = self._runs.get(id)
        if run is not None and run.state.exit is None and run.state.start_error is None:
            raise RuntimeFault(f"{id} still runs: signal it and wait for its end first")
        self._runs.pop(id, None)

    async def remove_sandbox(self, pod_uid: str) -> None:
        self._check()
        for id in [id for id in self._runs if id.pod_uid == pod_uid]:
            self._end(id, Exit(128 + signals.SIGKILL, int(signals.SIGKILL), False, self._now()))
            del self._runs[id]
        self._sandboxes.pop(pod_uid, None)

    async def sandboxes(self) -> Sequence[Sandbox]:
        self._check()
        return list(self._sandboxes.values())

    async def list(self) -> Sequence[ContainerState]:
        self._check()
        return [run.state for run in self._runs.values()]

    def events(self) -> AsyncIterator[RuntimeEvent]:
        return self._events.reader()

    async def exec(self, id: ContainerID, argv: Sequence[str], *, stdin: bool = False, tty: bool = False) -> FakeExec:
        self._check()
        run = self._runs.get(id)
        if run is None or run.state.pid == 0 or run.state.exit is not None:
            raise RuntimeFault(f"container {id.name} of pod {id.pod_uid} does not run (attempt {id.attempt})")
        return FakeExec(argv, stdin=stdin)

    async def run_probe(self, id: ContainerID, argv: Sequence[str], timeout_s: float) -> ProbeRun:
        stream = await self.exec(id, argv)
        output = b""
        try:
            async with asyncio.timeout(timeout_s):
                code = await stream.wait()
            while (piece := await stream.read())[0] != "end":
                output += piece[1]
        except TimeoutError:
            return ProbeRun(None, b"")
        finally:
            await stream.close()
        return ProbeRun(code, output)

    async def attach(self, id: ContainerID, *, stdin: bool = False) -> FakeAttach:
        """Every container gives back its input; `cat` ends with it (stdinOnce)."""
        self._check()
        run, spec = self._runs.get(id), self.specs.get(id)
        if run is None or spec is None or run.state.pid == 0 or run.state.exit is not None:
            raise RuntimeFault(f"container {id.name} of pod {id.pod_uid} does not run (attempt {id.attempt})")
        if stdin and not spec.stdin:
            raise RuntimeFault("the container's stdin is not open: set stdin: true in its manifest")
        if stdin and run.input_closed:
            raise RuntimeFault("the container's stdin has been closed (stdinOnce); attach without it")
        run.input_closed = stdin and spec.stdin_once
        stream = FakeAttach(
            run.listeners, partial(self.say, id) if stdin else None, self._input_ends(id) if stdin else None
        )
        run.listeners.append(stream)
        return stream

    def _input_ends(self, id: ContainerID) -> Callable[[], None]:
        def ended() -> None:
            if self.specs[id].stdin_once and self.specs[id].argv[0].endswith("cat"):
                self._end(id, Exit(0, 0, False, self._now()))

        return ended

    def say(self, id: ContainerID, data: bytes) -> None:
        """The container writes to its stdout."""
        for listener in self._runs[id].listeners:
            listener.put(data)

    async def usage(self) -> Mapping[ContainerID, Usage]:
        """As the real one, from the disk: also while the spawner is away."""
        return {
            id: self.used.get(id, USAGE) for id, run in self._runs.items() if run.state.pid and run.state.exit is None
        }

    def kept(self, pod_uid: str) -> Sequence[ContainerID]:
        """The runs that still take up room."""
        return [id for id in self._runs if id.pod_uid == pod_uid]

    def _check(self) -> None:
        if self.gone:
            raise RuntimeGone("the runtime's spawner does not answer (as told)")


class FakeAttach:
    """port.ExecStream of a container's own streams."""

    def __init__(
        self, listeners: list[FakeAttach], on_input: Callable[[bytes], None] | None, on_end: Callable[[], None] | None
    ) -> None:
        self._listeners, self._on_input, self._on_end = listeners, on_input, on_end
        self._output: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.size: tuple[int, int] | None = None

    def put(self, data: bytes) -> None:
        if data:
            self._output.put_nowait(data)

    def finish(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)
            self._output.put_nowait(b"")

    async def write(self, data: bytes) -> None:
        if self._on_input is not None and not self._ended.done():
            self._on_input(data)

    async def close_input(self) -> None:
        ended, self._on_input, self._on_end = self._on_end, None, None
        if ended is not None:
            ended()

    async def read(self) -> tuple[str, bytes]:
        data = await self._output.get()
        if data:
            return "stdout", data
        self._output.put_nowait(b"")
        return "end", b""

    async def resize(self, rows: int, columns: int) -> None:
        self.size = rows, columns

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        if self in self._listeners:
            self._listeners.remove(self)
        await self.close_input()


class FakeExec:
    """port.ExecStream of a command that this module knows."""

    def __init__(self, argv: Sequence[str], *, stdin: bool) -> None:
        self._output: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.size: tuple[int, int] | None = None
        word, args = argv[0].rpartition("/")[2], list(argv[1:])
        self._echoes = word == "cat" and stdin
        loop = asyncio.get_running_loop()
        if word == "echo":
            self._output.put_nowait((" ".join(args) + "\n").encode())
            self._finish(0)
        elif word == "exit":
            self._finish(int(args[0]))
        elif word == "sleep":
            loop.call_later(float(args[0]), self._finish, 0)
        elif word == "cat":
            if not stdin:
                self._finish(0)
        else:
            raise StartError("ContainerCannotRun", f"{argv[0]}: command not found in the image", 127)

    def _finish(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)
            self._output.put_nowait(b"")

    async def write(self, data: bytes) -> None:
        if self._echoes and not self._ended.done() and data:
            self._output.put_nowait(data)

    async def close_input(self) -> None:
        if self._echoes:
            self._finish(0)

    async def read(self) -> tuple[str, bytes]:
        data = await self._output.get()
        if data:
            return "stdout", data
        self._output.put_nowait(b"")  # every later read gives the end again
        return "end", b""

    async def resize(self, rows: int, columns: int) -> None:
        self.size = rows, columns

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        self._finish(128 + signals.SIGKILL)
