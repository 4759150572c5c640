"""What a start needs before the clone: the run's folders, and the spec as plain bytes. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shoal.agent.runtime import caps, init, mounts
from shoal.agent.runtime.explain import LaunchError
from shoal.agent.runtime.trees import delete_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Spec = Mapping[str, Any]  # the JSON form of port.ContainerSpec

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
    for folder in ("l", "upper", "work", "merged", "files"):
        os.makedirs(f"{work}/{folder}", mode=0o711 if folder == "merged" else 0o700)
    os.chmod(f"{work}/upper", 0o755)  # the upper's own mode is the root folder's
    _copy_root_mode(layers[-1], f"{work}/upper")
    for number, layer in enumerate(layers):
        os.symlink(layer, f"{work}/l/{number}")
    return [_write_file(work, number, *item) for number, item in enumerate(sorted(spec["files"].items()))]


def _copy_root_mode(top: str, upper: str) -> None:
    """The root folder a container sees is the upper's: it gets the image's owner and mode."""
    status = os.stat(top)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)


def _write_file(work: str, number: int, target: str, content: str) -> tuple[str, str]:
    name = f"files/{number}"
    fd = os.open(f"{work}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content.encode())
        os.fchmod(fd, 0o644)
    return name, clean(target)


def make_job(
    spec: Spec, argv: Sequence[str], streams: tuple[int, int, int], seccomp_bpf: bytes, terminal: bool
) -> init.Job:
    """The spec as the plain bytes and numbers that the child needs. Raises LaunchError for what cannot be passed."""
    env = {**({"TERM": DEFAULT_TERM} if terminal else {}), **spec["env"]}
    _check(argv, env, spec["user"], seccomp_bpf)
    folders = env.get("PATH", DEFAULT_PATH).split(":")
    job = init.Job(
        argv=[os.fsencode(word) for word in argv],
        env={os.fsencode(key): os.fsencode(value) for key, value in env.items()},
        path=[os.fsencode(folder) for folder in folders if folder],
    )
    job.user = os.fsencode(spec["user"])
    job.run_as_user, job.run_as_group = spec["run_as_user"], spec["run_as_group"]
    job.non_root, job.no_new_privs = bool(spec["run_as_non_root"]), bool(spec["no_new_privs"])
    try:
        job.capabilities = caps.after_drop(spec["drop_capabilities"])
    except caps.UnknownCapability as error:
        raise LaunchError("CreateContainerConfigError", f"capabilities.drop: {error}") from error
    job.oom_score_adj = int(limits(spec).get("oom_score_adj") or 0)
    job.seccomp, job.streams, job.terminal = seccomp_bpf, streams, terminal
    return job


def _check(argv: Sequence[str], env: Mapping[str, str], user: str, seccomp_bpf: bytes) -> None:
    if not argv or not argv[0]:
        raise LaunchError("CreateContainerConfigError", "no command: set command, or use an image with an entrypoint")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            text = f"the environment variable {name!r} cannot be passed: names have no '=', nothing has a NUL byte"
            raise LaunchError("CreateContainerConfigError", text)
    if any("\0" in word for word in (*argv, user)):
        raise LaunchError("CreateContainerConfigError", "command, args and user must not contain a NUL byte")
    if not seccomp_bpf or len(seccomp_bpf) % 8:
        raise LaunchError("CreateContainerError", "the seccomp profile is empty or damaged; compile it again")


def clean(path: str) -> str:
    """An absolute, normalised path; "" is the root."""
    if (path and not path.startswith("/")) or "\0" in path:
        raise LaunchError("CreateContainerConfigError", f"the path {path!r} in the container must be absolute")
    return "/" + os.path.normpath("/" + path).lstrip("/")


def limits(spec: Spec) -> Mapping[str, int | None]:
    """The limits of port.Limits, as a mapping."""
    found: Mapping[str, int | None] = spec["limits"]
    return found
