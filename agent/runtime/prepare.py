"""What a start needs before the clone: the run's folders, and the spec as plain bytes. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shoal.agent.runtime import binds, caps, devices, init, mounts, users
from shoal.agent.runtime.explain import LaunchError
from shoal.agent.runtime.trees import delete_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = Mapping[str, Any]  # the JSON form of port.ContainerSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNCONFINED = "unconfined"
DEFAULT_TERM = "xterm"  # of a command on a terminal


def prepare_work(spec: Spec, work: str) -> list[tuple[str, str]]:
    """Makes `work` with links to the layers, a fresh upper and the managed files: (file below `work`, target)."""
    layers = [os.path.abspath(layer) for layer in spec["layers"]]
    if not 1 <= len(layers) <= mounts.MAX_LAYERS:
        text = f"the image has {len(layers)} layers; overlayfs takes 1 to {mounts.MAX_LAYERS}: rebuild the image"
        raise LaunchError("CreateContainerError", text)
    for layer in layers:
        if not os.path.isdir(layer):
            raise LaunchError("CreateContainerError", f"the image's layer {layer} is missing; load the image again")
    delete_tree(work)  # an upper folder is never used twice
    for folder in ("l", "upper", "work", "merged", "files"):  # by short names: see mounts.Overlay
        os.makedirs(f"{work}/{folder}", mode=0o711 if folder == "merged" else 0o700)
    os.chmod(f"{work}/upper", 0o755)  # the upper's own mode is the root folder's
    _copy_root_mode(layers[-1], f"{work}/upper")
    for number, layer in enumerate(layers):
        os.symlink(layer, f"{work}/l/{number}")
    if spec.get("termination_path"):
        _make_file(f"{work}/{mounts.TERMINATION}", b"", 0o666)
    return [_write_file(work, number, *item) for number, item in enumerate(sorted(spec["files"].items()))]


def make_plan(spec: Spec, work: str, sandbox: str, views: Sequence[tuple[str, str]]) -> list[mounts.Step]:
    """Fills `work` and says how the container's file system is built from it. Raises LaunchError."""
    privileged = bool(spec.get("privileged"))
    try:
        wanted = binds.checked(spec.get("mounts") or (), privileged=privileged)
    except binds.BadMount as error:
        raise LaunchError("CreateContainerConfigError", f"volumeMounts: {error}") from error
    taken = {bind.target for bind in wanted}
    if "/dev/shm" not in taken and os.path.ismount(f"{sandbox}/shm"):
        wanted.insert(0, binds.Bind({"source": f"{sandbox}/shm", "target": "/dev/shm"}, privileged=True))
    plan = mounts.Plan(work=os.path.abspath(work), layers=len(spec["layers"]), cwd=clean(spec["cwd"]))
    plan.files = [(name, target) for name, target in prepare_work(spec, work) if target not in taken]
    plan.sources = [binds.OpenSource(bind) for bind in wanted]
    plan.attached = [binds.Attach(bind) for bind in wanted]
    plan.pod_shm = any(bind.target == "/dev/shm" for bind in wanted)
    termination = clean(spec.get("termination_path") or "")
    plan.termination = "" if termination in taken | {"/"} else termination
    plan.read_only_root, plan.cgroup_views = bool(spec["read_only_root"]), views
    plan.host_devices = devices.of_node() if privileged else None
    return plan.steps()


def _copy_root_mode(top: str, upper: str) -> None:
    """The root folder a container sees is the upper's: it gets the image's owner and mode."""
    status = os.stat(top)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)


def _write_file(work: str, number: int, target: str, content: str) -> tuple[str, str]:
    name = f"files/{number}"
    _make_file(f"{work}/{name}", content.encode(), 0o644)
    return name, clean(target)


def _make_file(path: str, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, mode)


def make_job(
    spec: Spec, argv: Sequence[str], streams: tuple[int, int, int], seccomp_bpf: bytes, terminal: bool
) -> init.Job:
    """The spec as the plain bytes and numbers that the child needs. Raises LaunchError for what cannot be passed."""
    env = {**({"TERM": DEFAULT_TERM} if terminal else {}), **spec["env"]}
    privileged = bool(spec.get("privileged"))
    _check(argv, env, spec["user"])
    if privileged or spec.get("seccomp") == UNCONFINED:
        seccomp_bpf = b""
    elif not seccomp_bpf or len(seccomp_bpf) % 8:
        raise LaunchError("CreateContainerError", "the seccomp profile is empty or damaged; compile it again")
    folders = env.get("PATH", DEFAULT_PATH).split(":")
    job = init.Job(
        argv=[os.fsencode(word) for word in argv],
        env={os.fsencode(key): os.fsencode(value) for key, value in env.items()},
        path=[os.fsencode(folder) for folder in folders if folder],
    )
    job.user = os.fsencode(spec["user"])
    job.run_as_user, job.run_as_group = spec["run_as_user"], spec["run_as_group"]
    job.non_root, job.no_new_privs = bool(spec["run_as_non_root"]), bool(spec["no_new_privs"])
    job.capabilities, job.groups = _capabilities(spec, privileged), _groups(spec)
    job.oom_score_adj = int(limits(spec).get("oom_score_adj") or 0)
    job.seccomp, job.streams, job.terminal = seccomp_bpf, streams, terminal
    return job


def _capabilities(spec: Spec, privileged: bool) -> int:
    add = ["ALL"] if privileged else spec.get("add_capabilities") or ()
    try:
        own = caps.possible() if add else -1
        return own if privileged else caps.chosen(add, spec["drop_capabilities"], own)
    except caps.UnknownCapability as error:
        raise LaunchError("CreateContainerConfigError", f"securityContext.capabilities: {error}") from error


def _groups(spec: Spec) -> list[int]:
    found = [int(group) for group in spec.get("supplemental_groups") or ()]
    bad = next((group for group in found if not 0 <= group <= users.MAX_ID), None)
    if bad is not None or len(found) > users.MAX_GROUPS:
        what = f"{bad} is no group id" if bad is not None else f"{len(found)} groups are more than {users.MAX_GROUPS}"
        raise LaunchError("CreateContainerConfigError", f"supplementalGroups: {what}")
    return found


def _check(argv: Sequence[str], env: Mapping[str, str], user: str) -> None:
    if not argv or not argv[0]:
        raise LaunchError("CreateContainerConfigError", "no command: set command, or use an image with an entrypoint")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            text = f"the environment variable {name!r} cannot be passed: names have no '=', nothing has a NUL byte"
            raise LaunchError("CreateContainerConfigError", text)
    if any("\0" in word for word in (*argv, user)):
        raise LaunchError("CreateContainerConfigError", "command, args and user must not contain a NUL byte")


def clean(path: str) -> str:
    """An absolute, normalised path; "" is the root."""
    if (path and not path.startswith("/")) or "\0" in path:
        raise LaunchError("CreateContainerConfigError", f"the path {path!r} in the container must be absolute")
    return "/" + os.path.normpath("/" + path).lstrip("/")


def limits(spec: Spec) -> Mapping[str, int | None]:
    """The limits of port.Limits, as a mapping."""
    found: Mapping[str, int | None] = spec["limits"]
    return found
