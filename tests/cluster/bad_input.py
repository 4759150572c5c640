"""What the tests of bad input share: a small cluster under the real command, and images for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import images

NAME = "badin"
BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
APPLETS = ("sh", "sleep", "cat", "echo", "true", "wc")
WAIT_SECONDS = 120.0
COMMAND_SECONDS = 240.0


def busybox(name: str) -> bytes:
    """An OCI archive with busybox under its usual names."""
    links = [images.symlink(f"bin/{applet}", "busybox") for applet in APPLETS]
    layer = images.layer(images.folder("bin"), images.member("bin/busybox", BUSYBOX.read_bytes(), 0o755), *links)
    return images.oci_archive(images.image(layer, names=[f"docker.io/library/{name}"]))


def pod(name: str, image: str = "base:1", command: str = '["sleep", "1000"]', more: str = "") -> str:
    """A manifest on one line; `more` are further fields of the container, each with a comma before it."""
    container = (
        f"{{name: main, image: {image}, command: {command}{more}}}" if command else f"{{name: main, image: {image}}}"
    )
    spec = f"{{terminationGracePeriodSeconds: 0, containers: [{container}]}}"
    return f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}\n"


def config_map(name: str, data: str = "{a: x}") -> str:
    return f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {data}}}\n"


class Shoal:
    """Runs the real command in a process of its own; no answer may ever hold a traceback."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0, stdin: str | bytes = b"", config: Path | None = None) -> str:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "shoal.deploy.cli.main", *arguments],
            input=given,
            capture_output=True,
            env=os.environ | {"SHOAL_CONFIG": str(config or self.config)},
            timeout=COMMAND_SECONDS,
            check=False,
        )
        out, self.err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in out + self.err, self.err
        assert done.returncode == code, (arguments, done.returncode, out[-2000:], self.err[-2000:])
        return out

    def file(self, data: str | bytes, name: str = "manifest.yaml") -> str:
        path = self.folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)

    def apply(self, text: str | bytes, *more: str, code: int = 0) -> str:
        return self("apply", "-f", self.file(text), *more, code=code)

    def refuses(self, text: str | bytes, *told: str, code: int = 1) -> None:
        """Applying it fails, says all this, and leaves nothing in the cluster."""
        assert self.apply(text, code=code) == ""
        for words in told:
            assert words in self.err, (words, self.err)
        assert self.items("pods,cm,deploy,secrets") == []

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("get", *arguments, "-o", "json"))["items"]
        return found

    def pod(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("get", "pod", name, "-o", "json"))
        return found

    def state(self, name: str) -> dict[str, Any]:
        """The state of the pod's container; {} while it has none."""
        statuses = self.pod(name).get("status", {}).get("containerStatuses", [])
        found: dict[str, Any] = statuses[0].get("state", {}) if statuses else {}
        return found

    def until(self, name: str, reached: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The pod's container state once `reached` holds for it."""
        end = time.monotonic() + WAIT_SECONDS
        while not reached(state := self.state(name)):
            assert time.monotonic() < end, state
            time.sleep(0.2)
        return state

    def running(self, name: str) -> None:
        self.until(name, lambda state: "running" in state)

    def clear(self) -> None:
        self("delete", "deploy,rs,pods,cm,secrets", "--all", "--force", "--timeout", "180s")


@contextmanager
def cluster(folder: Path, *flags: str, name: str = NAME) -> Iterator[Shoal]:
    """Two nodes with the image base:1, taken down at the end; `flags` are of `up`."""
    shoal = Shoal(folder / "config", folder)
    data = str(folder / "data")
    try:
        shoal("up", "--name", name, "--nodes", "2", "--data", data, "--timeout", "180s", *flags)
        shoal("image", "load", shoal.file(busybox("base:1"), "base.tar"))
        yield shoal
    finally:
        shoal("down", "--name", name, "--data", data)
