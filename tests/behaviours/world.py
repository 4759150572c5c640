"""What a behaviour's test has: a namespace of its own on a real cluster of two nodes, and the command."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests import images
from tests.devcluster import COMMAND_SECONDS, Cluster, Unmet, until

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
IMAGE = "busy:1"  # every applet, users root, app (1000) and other (1001); no ENTRYPOINT, CMD `sh`
POD_SECONDS = 120.0
_NUMBERS = itertools.count(1)

Object = dict[str, Any]


def busybox_layer() -> Sequence[images.Member]:
    """The whole of busybox, users, and a folder for each of them."""
    applets = subprocess.run([str(BUSYBOX), "--list"], capture_output=True, text=True, check=True).stdout.split()
    passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nother:x:1001:1001::/:/bin/sh\n"
    group = "root:x:0:\napp:x:1000:\nother:x:1001:\nextra:x:2000:app\n"
    return [
        *(images.folder(name) for name in ("bin", "etc", "root", "home", "data", "usr", "usr/bin", "var", "proc")),
        images.folder("tmp", 0o1777),
        images.folder("home/app", uid=1000, gid=1000),
        images.member("bin/busybox", BUSYBOX.read_bytes(), 0o755),
        *(images.symlink(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"),
        images.member("etc/passwd", passwd.encode()),
        images.member("etc/group", group.encode()),
    ]


def busybox_image(name: str = IMAGE, **config: Any) -> bytes:
    """An archive of `busybox_layer`; `config` is the image's own (Entrypoint, Cmd, Env, User, ...)."""
    layer = images.layer(*busybox_layer())
    return images.oci_archive(
        images.image(layer, names=[f"docker.io/library/{name}"], config={"Cmd": ["sh"], **config})
    )


def container(script: str | Sequence[str] = "", name: str = "main", **fields: Any) -> Object:
    """A container of IMAGE; `script` is a shell script, or a command's words."""
    command: Object = {}
    if script:
        command["command"] = ["sh", "-c", script] if isinstance(script, str) else list(script)
    return {"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", **command, **fields}


def pod(name: str, *containers: Object, **spec: Any) -> Object:
    """A pod's manifest; `labels` and `annotations` go to its metadata."""
    metadata: Object = {"name": name}
    for field in ("labels", "annotations"):
        if field in spec:
            metadata[field] = spec.pop(field)
    body = {"terminationGracePeriodSeconds": 1, "containers": list(containers), **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body}


def config_map(name: str, data: Mapping[str, str], **fields: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data), **fields}


def secret(name: str, data: Mapping[str, str], **fields: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(data), **fields}


class World:
    """One test's namespace. Waits are for conditions; their seconds only bound a failure."""

    def __init__(self, cluster: Cluster, folder: Path, labels: Mapping[str, str] | None = None) -> None:
        self.cluster, self.folder = cluster, folder
        self.namespace = f"b{next(_NUMBERS)}"
        self._make({"name": self.namespace, "labels": dict(labels or {})})

    def _make(self, metadata: Object) -> None:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        self.cluster.shoal("apply", "-f", self.write(manifest))

    def label(self, **labels: str) -> None:
        """Labels the namespace (`pod_security="privileged"` is pod-security.kubernetes.io/enforce)."""
        level = labels.pop("pod_security", None)
        if level is not None:
            labels["pod-security.kubernetes.io/enforce"] = level
        self._make({"name": self.namespace, "labels": labels})

    def write(self, *objects: Object) -> str:
        path = self.folder / f"manifest-{next(_NUMBERS)}.yaml"
        path.write_text(yaml.safe_dump_all(objects, sort_keys=False))
        return str(path)

    # ---- the command ----
    def shoal(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> str:
        return self.cluster.shoal(*arguments[:1], "-n", self.namespace, *arguments[1:], timeout=timeout)

    def attempt(self, *arguments: str, timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        return self.cluster.attempt(*arguments[:1], "-n", self.namespace, *arguments[1:], timeout=timeout)

    def apply(self, *objects: Object) -> str:
        return self.shoal("apply", "-f", self.write(*objects))

    def refused(self, *objects: Object) -> str:
        """What apply says of objects that it must refuse."""
        done = self.attempt("apply", "-f", self.write(*objects))
        assert done.returncode != 0, f"it was accepted: {done.stdout}"
        assert "Traceback" not in done.stderr
        return done.stderr

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.shoal("get", kind, name, "-o", "json"))
        return found

    def pod(self, name: str) -> Object:
        return self.get("pod", name)

    def status(self, name: str, container: str = "main") -> Object:
        """A container's status, of any kind of container; {} before there is one."""
        status = self.pod(name).get("status", {})
        every = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        return next((one for one in every if one["name"] == container), {})

    def logs(self, name: str, *arguments: str) -> str:
        return self.shoal("logs", name, *arguments)

    def exec(self, name: str, *command: str, container: str = "") -> str:
        chosen = ["-c", container] if container else []
        return self.shoal("exec", name, *chosen, "--", *command)

    # ---- waiting ----
    def until(
        self, name: str, what: str, condition: Callable[[Object], object], seconds: float = POD_SECONDS
    ) -> Object:
        """The pod, once `condition` holds of it; what it looks at may not be there yet."""
        found: Object = {}

        def problem() -> str:
            nonlocal found
            found = self.pod(name)
            with contextlib.suppress(KeyError, IndexError):
                if condition(found):
                    return ""
            return f"pod {name} is not {what}: {found.get('status')}"

        until(problem, seconds)
        return found

    def phase(self, name: str, *phases: str, seconds: float = POD_SECONDS) -> Object:
        return self.until(name, " or ".join(phases), lambda pod: pod.get("status", {}).get("phase") in phases, seconds)

    def ready(self, name: str, seconds: float = POD_SECONDS) -> Object:
        def is_ready(pod: Object) -> bool:
            conditions = pod.get("status", {}).get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        return self.until(name, "ready", is_ready, seconds)

    def waiting(self, name: str, reason: str, container: str = "main", seconds: float = POD_SECONDS) -> str:
        """The message of a container that waits for `reason`."""

        def state(pod: Object) -> Object:
            status = pod.get("status", {})
            for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
                if one["name"] == container:
                    return dict(one.get("state", {}).get("waiting", {}))
            return {}

        found = self.until(name, f"waiting with {reason}", lambda pod: state(pod).get("reason") == reason, seconds)
        return str(state(found).get("message", ""))

    def said(self, name: str, text: str, *arguments: str, whole: bool = False) -> None:
        """Waits until a container's log has `text` in it, or is it: what runs may not have written yet."""

        def problem() -> str:
            log = self.logs(name, *arguments)
            return "" if log == text or (text in log and not whole) else f"the log of {name} is {log[-1000:]!r}"

        until(problem, POD_SECONDS)

    def run(self, manifest: Object, *phases: str) -> Object:
        """Applies a pod and waits for its end (or one of `phases`)."""
        self.apply(manifest)
        return self.phase(manifest["metadata"]["name"], *(phases or ("Succeeded", "Failed")))

    def output(self, manifest: Object) -> str:
        """The log of a one-container pod that must succeed."""
        name = manifest["metadata"]["name"]
        manifest["spec"].setdefault("restartPolicy", "Never")
        pod = self.run(manifest)
        if pod["status"]["phase"] != "Succeeded":
            raise Unmet(f"pod {name} failed: {pod['status']}; its log: {self.logs(name)}")
        return self.logs(name)

    def close(self) -> None:
        self.cluster.shoal("delete", "namespace", self.namespace, "--wait=false")


def deaths(world: World, name: str = "p", count: int = 1) -> list[Object]:
    """The certificates of a pod, oldest run first, once there are so many."""
    found: list[Object] = []

    def problem() -> str:
        nonlocal found
        listed = json.loads(world.shoal("get", "deaths", "--field-selector", f"pod.name={name}", "-o", "json"))
        found = sorted(listed["items"], key=lambda death: death.get("attempt", 0))
        return "" if len(found) >= count else f"pod {name} has {len(found)} certificates, not {count}"

    until(problem, POD_SECONDS)
    return found


def why(world: World, name: str = "p") -> str:
    """What `shoal why` says, on one line."""
    return " ".join(world.shoal("why", name).split())
