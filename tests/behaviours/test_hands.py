"""What people do with their hands: logs, exec, attach, cp and top, on the real cluster through the command."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import signal
import stat
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.behaviours.world import World, container, pod
from tests.devcluster import Unmet, until

SECONDS = 120.0


class Follower:
    """A `shoal` that runs beside the test; its output goes to files."""

    def __init__(self, world: World, *arguments: str) -> None:
        self._out, self._err = world.folder / f"out-{id(self)}", world.folder / f"err-{id(self)}"
        words = [arguments[0], "--context", world.cluster.name, "-n", world.namespace, *arguments[1:]]
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                ["env", "--default-signal=INT", sys.executable, "-m", "shoal.deploy.cli.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **world.cluster.environment},
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def until(self, text: str, seconds: float = SECONDS) -> None:
        def problem() -> str:
            if text in self.out or text in self.err:
                return ""
            if self.process.poll() is not None and text not in self.out + self.err:
                raise Unmet(f"it ended with {self.process.returncode} without {text!r}: {self.out[-500:]}{self.err}")
            return f"{text!r} has not come: {self.out[-500:]} {self.err}"

        until(problem, seconds)

    def until_lines(self, count: int) -> None:
        until(lambda: "" if len(self.out.splitlines()) > count else f"no more lines come: {self.err}", SECONDS)

    def until_notes(self, count: int) -> None:
        until(lambda: "" if self.err.count("interrupted") >= count else f"nothing was noticed: {self.err}", SECONDS)

    def wait(self) -> int:
        return self.process.wait(SECONDS)


@contextmanager
def following(world: World, *arguments: str) -> Iterator[Follower]:
    made = Follower(world, *arguments)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def counting(name: str, script: str, **spec: object) -> dict[str, object]:
    return pod(name, container(script), **spec)


# ---- logs ----
def test_followed_logs_lose_and_double_nothing_over_rotations_and_restarts(world: World) -> None:
    """35 MB a run, where files are rotated at 10: each number comes once, run after run."""
    lines = 350_000
    script = f"seq 1 {lines} | sed 's/$/ {'x' * 90}/'; echo run over"
    world.apply(counting("p", script))
    with following(world, "logs", "-f", "p") as logs:
        until(lambda: "" if logs.out.count("run over") >= 2 else f"{logs.out.count('run over')} runs {logs.err}", 240)
        out = logs.out
    runs = out.split("run over\n")[:2]
    for run in runs:
        assert [int(line.partition(" ")[0]) for line in run.splitlines()] == list(range(1, lines + 1))


def test_followed_logs_survive_the_agent_and_the_master(world: World) -> None:
    world.apply(counting("p", "i=0; while :; do i=$((i+1)); echo $i; usleep 2000; done", restartPolicy="Never"))
    node = world.ready("p")["spec"]["nodeName"]
    with following(world, "logs", "-f", "p") as logs:
        for part in (f"agent-{node}", "master-0"):
            seen = len(logs.out.splitlines())
            logs.until_lines(seen + 20)
            victim = world.cluster.part(part)
            assert victim is not None
            notes = logs.err.count("interrupted")
            os.kill(victim.pid, signal.SIGKILL)
            logs.until_notes(notes + 1)
        logs.until_lines(len(logs.out.splitlines()) + 20)
        world.shoal("delete", "pod", "p")
        assert logs.wait() == 0, logs.err
        numbers = [int(line) for line in logs.out.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_logs_wait_for_a_container_that_has_not_started(world: World) -> None:
    init = container("sleep 2", name="first")
    world.apply(pod("p", container("echo here; sleep 1000"), initContainers=[init]))
    with following(world, "logs", "-f", "p", "-c", "main") as logs:
        logs.until("here")
    world.apply(pod("never", container("echo x", image="nowhere/none:1"), restartPolicy="Never"))
    done = world.attempt("logs", "never")
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("error: "), done.stderr


def test_logs_of_several_containers_and_pods(world: World) -> None:
    two = [container("echo from a; sleep 1000", name="a"), container("echo from b; sleep 1000", name="b")]
    world.apply(pod("p", *two, labels={"app": "x"}), pod("q", *two, labels={"app": "x"}))
    for name, each in itertools.product("pq", "ab"):
        world.said(name, f"from {each}", "-c", each)
    assert world.logs("p", "--all-containers").splitlines() == ["from a", "from b"]
    done = world.attempt("logs", "p")
    assert done.stdout == "from a\n" and 'Defaulted container "a" out of: a, b' in done.stderr
    assert world.logs("pod/q", "-c", "b", "--prefix") == "[pod/q/b] from b\n"
    everything = world.shoal("logs", "-l", "app=x", "--all-containers", "--prefix").splitlines()
    assert everything == [f"[pod/{name}/{each}] from {each}" for name in "pq" for each in "ab"]
    too_many = world.attempt("logs", "-f", "-l", "app=x", "--all-containers", "--max-log-requests", "3")
    assert too_many.returncode == 1 and "--max-log-requests" in too_many.stderr
    with following(world, "logs", "-f", "-l", "app=x", "-c", "a", "--prefix") as logs:
        logs.until("[pod/q/a] from a")
        world.apply(pod("later", *two, labels={"app": "x"}))
        logs.until("[pod/later/a] from a")
        assert sorted(logs.out.splitlines()) == [f"[pod/{name}/a] from a" for name in ("later", "p", "q")]
        logs.process.send_signal(signal.SIGINT)
        assert logs.wait() == 130 and "Traceback" not in logs.err and "closed" not in logs.err


def test_logs_by_time_and_size(world: World) -> None:
    world.apply(counting("p", "echo old; sleep 1.2; date +%s; echo new; sleep 1000"))
    with following(world, "logs", "-f", "p") as logs:
        logs.until("new")
    stamps = world.logs("p", "--timestamps").splitlines()
    assert [line.partition(" ")[2] for line in stamps][::2] == ["old", "new"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamps[1].partition(" ")[0])
    assert world.logs("p", "--since-time", stamps[1].partition(" ")[0]).splitlines()[-1:] == ["new"]
    assert "old" not in world.logs("p", "--since-time", stamps[1].partition(" ")[0])
    assert world.logs("p", "--since", "1h").startswith("old\n")
    assert world.logs("p", "--limit-bytes", "2") == "ol"
    assert world.logs("p", "--tail", "1") == "new\n"
    wrong = world.attempt("logs", "p", "--since-time", "yesterday")
    assert wrong.returncode == 2 and "is not a time" in wrong.stderr


# ---- exec ----
def test_exec_passes_the_codes_on(world: World) -> None:
    world.apply(counting("p", "sleep 1000"))
    world.ready("p")
    assert world.attempt("exec", "p", "--", "sh", "-c", "exit 42").returncode == 42
    assert world.attempt("exec", "p", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = world.attempt("exec", "p", "--", "/no/such/thing")
    assert missing.returncode == 127 and "/no/such/thing" in missing.stderr and "Traceback" not in missing.stderr
    refused = world.attempt("exec", "p", "--", "/etc/passwd")
    assert refused.returncode == 126 and "/etc/passwd" in refused.stderr
    assert world.shoal("exec", "pod/p", "--", "echo", "-l", "--", "x") == "-l -- x\n"


class Terminal:
    """A `shoal` on a terminal of its own."""

    def __init__(self, world: World, *arguments: str, rows: int, columns: int) -> None:
        self.fd, end = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.fd)
        words = [arguments[0], "--context", world.cluster.name, "-n", world.namespace, *arguments[1:]]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.deploy.cli.main", *words],
            stdin=end,
            stdout=end,
            stderr=end,
            env={**os.environ, **world.cluster.environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._end = end  # held, so that the terminal and its settings outlive the command
        self.seen = ""
        os.set_blocking(self.fd, False)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> None:
        def problem() -> str:
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
            except BlockingIOError:
                pass
            return "" if text in self.seen else f"{text!r} has not come: {self.seen!r}"

        until(problem, SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self._end)


@contextmanager
def terminal(world: World, *arguments: str, rows: int = 30, columns: int = 100) -> Iterator[Terminal]:
    made = Terminal(world, *arguments, rows=rows, columns=columns)
    try:
        yield made
    finally:
        made.close()


def test_exec_on_a_terminal(world: World) -> None:
    """Its size and changes of it, Ctrl-C for the program inside, the exit code, and our terminal as it was."""
    world.apply(counting("p", "sleep 1000"))
    world.ready("p")
    with terminal(world, "exec", "-it", "p", "--", "sh") as shell:
        shell.until("/ #")
        shell.type("stty size; test -t 1 && echo term-$((3+2)); echo begun-$((1+1))\n")
        shell.until("begun-2")
        assert "30 100" in shell.seen and "term-5" in shell.seen
        shell.resize(40, 90)
        os.killpg(shell.process.pid, signal.SIGWINCH)
        shell.type("while [ \"$(stty size)\" != '40 90' ]; do usleep 10000; done; echo sized-$((2+2))\n")
        shell.until("sized-4")
        shell.type("echo sleeping-$((5+5)); sleep 1000\n")
        shell.until("sleeping-10")
        shell.type("\x03")
        shell.type("echo alive-$((3+3))\n")
        shell.until("alive-6")
        shell.type("exit 7\n")
        assert shell.process.wait(SECONDS) == 7
        assert termios.tcgetattr(shell.fd) == shell.before
    with terminal(world, "exec", "-it", "p", "--", "sh") as shell:
        shell.until("/ #")
        shell.type("echo up-$((4+4))\n")
        shell.until("up-8")
        shell.process.terminate()
        shell.process.wait(SECONDS)
        assert termios.tcgetattr(shell.fd) == shell.before


# ---- attach ----
def test_attach_gives_input_and_shows_output(world: World) -> None:
    """And with stdinOnce the end of the input is the container's too."""
    script = "echo first; while read line; do echo got $line; done; echo over; exit 3"
    world.apply(pod("p", container(script, stdin=True, stdinOnce=True), restartPolicy="Never"))
    world.phase("p", "Running")
    words = ["attach", "--context", world.cluster.name, "-n", world.namespace, "-i", "p"]
    done = subprocess.run(
        [sys.executable, "-m", "shoal.deploy.cli.main", *words],
        input="one\ntwo\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **world.cluster.environment},
        check=False,
    )
    assert "got one\ngot two\n" in done.stdout, done
    assert world.phase("p", "Succeeded", "Failed")["status"]["phase"] == "Failed"
    assert world.logs("p").splitlines() == ["first", "got one", "got two", "over"]


def test_attach_says_when_there_is_no_input(world: World) -> None:
    world.apply(counting("p", "i=0; while :; do i=$((i+1)); echo tick $i; usleep 100000; done"))
    world.ready("p")
    done = world.attempt("attach", "-i", "p")
    assert done.returncode == 1 and "`stdin: true`" in done.stderr
    with following(world, "attach", "p") as attached:
        attached.until("tick")
    assert world.status("p")["restartCount"] == 0, "who lets go does not harm the container"


def test_attach_lends_our_terminal(world: World) -> None:
    """To a shell that outlives us; who comes again finds it as it was left."""
    world.apply(pod("p", container(["sh"], stdin=True, tty=True), restartPolicy="Never"))
    world.phase("p", "Running")
    for number in (1, 2):
        with terminal(world, "attach", "-it", "p", rows=33, columns=77) as shell:
            shell.until("try Enter")
            shell.type(f"echo hello-$(({number}+1)) $mine\n")
            shell.until(f"hello-{number + 1}")
            shell.type("mine=kept; while [ \"$(stty size)\" != '33 77' ]; do usleep 10000; done; echo sized-$((2+2))\n")
            shell.until("sized-4")
            assert "hello-3 kept" in shell.seen or number == 1
    assert world.status("p")["restartCount"] == 0 and "running" in world.status("p")["state"]


# ---- cp ----
def test_cp_there_and_back(world: World, tmp_path: Path) -> None:
    """Odd names, a large file, links and modes, by an image's user, in a container without tar."""
    source = tmp_path / "tree"
    (source / "folder with spaces" / "deep").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "line\nbreak ünï").write_text("odd")
    (source / "run").write_text("#!/bin/sh\necho ran\n")
    (source / "run").chmod(0o755)
    (source / "folder with spaces" / "deep" / "big").write_bytes(os.urandom(50 << 20))
    (source / "link").symlink_to("run")
    (source / "out").symlink_to("/etc/hostname")
    security = {"runAsUser": 1000}
    world.apply(pod("p", container("rm -f /bin/tar; sleep 1000", securityContext=security)))
    world.ready("p")
    world.shoal("cp", str(source), "p:/tmp/copy")
    assert world.exec("p", "/tmp/copy/run") == "ran\n"
    assert world.exec("p", "stat", "-c", "%u %a", "/tmp/copy/run") == "1000 755\n"
    assert world.exec("p", "readlink", "/tmp/copy/out") == "/etc/hostname\n"
    world.shoal("cp", f"{world.namespace}/p:/tmp/copy", str(tmp_path / "back"))
    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", source, tmp_path / "back"], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stdout
    assert stat.S_IMODE((tmp_path / "back" / "run").stat().st_mode) == 0o755
    assert os.readlink(tmp_path / "back" / "out") == "/etc/hostname"
    world.shoal("cp", str(source / "run"), "p:/tmp/copy/empty/")
    assert world.exec("p", "ls", "/tmp/copy/empty") == "run\n"


def test_cp_and_links_that_lead_out(world: World, tmp_path: Path) -> None:
    """The container's links lead inside of the container, whoever follows them."""
    (tmp_path / "file").write_text("new")
    mark = tmp_path / "outside"
    mark.mkdir()
    script = f"ln -s {mark} /tmp/there; ln -s /../../../..{mark} /tmp/up; mkfifo /tmp/pipe; sleep 1000"
    world.apply(counting("p", script))
    world.ready("p")
    world.until("p", "set up", lambda _pod: "pipe" in world.exec("p", "ls", "/tmp"))
    for link in ("there", "up"):
        done = world.attempt("cp", str(tmp_path / "file"), f"p:/tmp/{link}/file")
        assert done.returncode == 1 and "Traceback" not in done.stderr, done
    assert os.listdir(mark) == []
    done = world.attempt("cp", "p:/proc/1/root/etc/passwd", str(tmp_path / "passwd"))
    assert done.returncode == 1, "no magic link is followed"
    done = world.attempt("cp", "p:/tmp", str(tmp_path / "got"))
    assert done.returncode == 0 and "tmp/pipe is a device, a socket or a pipe: skipped" in done.stderr
    assert os.readlink(tmp_path / "got" / "there") == str(mark)


MISTAKES = [
    (["p:/a", "p:/b"], 2, "one of SOURCE and TARGET"),
    (["./a", "./b"], 2, "one of SOURCE and TARGET"),
    (["p:a", "./b"], 2, "must be absolute"),
    (["p:/no/such", "./b"], 1, "/no/such: No such file"),
    (["/no/such", "p:/tmp"], 1, "/no/such"),
    (["nobody:/x", "./b"], 1, "not found"),
    (["p:/etc/passwd", "/no/such/place"], 1, "does not exist here"),
    (["/etc/hostname", "p:/no/such/place"], 1, "does not exist in the container"),
    (["/etc/hostname", "p:/proc/sysrq-trigger"], 1, "error:"),
]


def test_cp_says_what_is_wrong(world: World) -> None:
    world.apply(counting("p", "sleep 1000"))
    world.ready("p")
    for words, code, text in MISTAKES:
        done = world.attempt("cp", *words)
        assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (code, True, False), (words, done)


# ---- top ----
def test_top_shows_a_busy_pod_near_its_limit(world: World) -> None:
    limits = {"limits": {"cpu": "200m", "memory": "64Mi"}}
    world.apply(pod("busy", container("while :; do :; done", resources=limits)), counting("idle", "sleep 1000"))
    node = world.ready("busy")["spec"]["nodeName"]
    world.ready("idle")
    cores: dict[str, int] = {}

    def problem() -> str:
        table = [line.split() for line in world.shoal("top", "pods", "--no-headers", "--sort-by", "cpu").splitlines()]
        cores.update({row[0]: int(row[1].removesuffix("m")) for row in table})
        return "" if [row[0] for row in table] == ["busy", "idle"] and 100 <= cores["busy"] <= 260 else str(table)

    until(problem, SECONDS)
    assert cores["idle"] < 50
    rows = world.shoal("top", "pod", "busy", "--containers").splitlines()
    assert rows[0].split() == ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"] and rows[1].split()[:2] == ["busy", "main"]

    def quiet() -> str:
        table = world.shoal("top", "nodes")
        nodes = {row.split()[0]: row.split() for row in table.splitlines()[1:]}
        busy = len(nodes) == 2 and int(nodes[node][1].removesuffix("m")) >= 100 and nodes[node][4].endswith("%")
        return "" if busy else table

    until(quiet, SECONDS)
    assert world.attempt("top", "pod", "nobody").returncode == 1
