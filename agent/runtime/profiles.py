"""Seccomp profiles of the node's operator (OCI and Docker JSON), compiled to BPF. Part of the agent.

Understood: defaultAction, defaultErrnoRet, architectures and archMap, syscalls with names, action, errnoRet, args,
includes and excludes (caps, arches, minKernel). What is not understood is an error, never left out.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyseccomp

from shoal.agent.runtime.seccomp import ProfileError

MAX_BYTES = 1 << 20  # of a profile
MAX_RULES = 4096
ACTIONS = {
    "SCMP_ACT_ALLOW": pyseccomp.ALLOW,
    "SCMP_ACT_LOG": pyseccomp.LOG,
    "SCMP_ACT_KILL": pyseccomp.KILL,
    "SCMP_ACT_KILL_THREAD": pyseccomp.KILL,
    "SCMP_ACT_KILL_PROCESS": pyseccomp.KILL_PROCESS,
    "SCMP_ACT_TRAP": pyseccomp.TRAP,
}
OPERATORS = {
    "SCMP_CMP_NE": pyseccomp.NE,
    "SCMP_CMP_LT": pyseccomp.LT,
    "SCMP_CMP_LE": pyseccomp.LE,
    "SCMP_CMP_EQ": pyseccomp.EQ,
    "SCMP_CMP_GE": pyseccomp.GE,
    "SCMP_CMP_GT": pyseccomp.GT,
    "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
}
ARCHITECTURES = {  # OCI's names, and Docker's in includes and excludes, of the machine's own
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
}
OTHERS = {"SCMP_ARCH_X86": "x86", "SCMP_ARCH_X32": "x32", "SCMP_ARCH_ARM": "arm"}
KNOWN_KEYS = {"defaultAction", "defaultErrnoRet", "architectures", "archMap", "syscalls", "$schema", "comment"}
RULE_KEYS = {"name", "names", "action", "errnoRet", "args", "includes", "excludes", "comment"}


def read(path: str) -> bytes:
    """The file's bytes. Raises ProfileError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ProfileError(f"seccomp profile {path} is no regular file")
            content = file.read(MAX_BYTES + 1)
    except OSError as fault:
        raise ProfileError(f"seccomp profile {path} cannot be read on this node: {fault.strerror}") from fault
    if len(content) > MAX_BYTES:
        raise ProfileError(f"seccomp profile {path} has more than {MAX_BYTES} bytes")
    return content


def compile_json(content: bytes, path: str, capabilities: Iterable[str] = ()) -> bytes:
    """A profile as an array of struct sock_filter; `path` names it in errors, `capabilities` are the container's.
    Raises ProfileError."""
    try:
        profile = json.loads(content)
        if not isinstance(profile, dict):
            raise ProfileError("it must be one JSON object")
        return _compile(profile, frozenset(f"CAP_{name}" for name in capabilities))
    except (ValueError, RecursionError) as fault:
        raise ProfileError(f"seccomp profile {path} is not JSON: {fault}") from fault
    except ProfileError as fault:
        raise ProfileError(f"seccomp profile {path}: {fault}") from fault
    except (OSError, TypeError, AttributeError, OverflowError) as fault:
        raise ProfileError(f"seccomp profile {path} cannot be compiled: {fault}") from fault


def _compile(profile: Mapping[str, Any], capabilities: frozenset[str]) -> bytes:
    _known(profile, KNOWN_KEYS, "")
    default = _action(profile.get("defaultAction"), profile.get("defaultErrnoRet"), "defaultAction")
    filter_ = pyseccomp.SyscallFilter(default)
    for name in _extra_architectures(profile):
        filter_.add_arch(getattr(pyseccomp.Arch, name.upper()))
    rules = profile.get("syscalls", [])
    if not isinstance(rules, list) or len(rules) > MAX_RULES:
        raise ProfileError(f"syscalls must be a list of at most {MAX_RULES}")
    for number, rule in enumerate(rules):
        _add_rule(filter_, default, rule, f"syscalls[{number}]", capabilities)
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def _known(holder: object, keys: set[str], where: str) -> None:
    if not isinstance(holder, dict):
        raise ProfileError(f"{where} must be an object")
    unknown = sorted(set(holder) - keys)
    if unknown:
        raise ProfileError(f"{where}{'.' if where else ''}{unknown[0]} is not supported")


def _extra_architectures(profile: Mapping[str, Any]) -> list[str]:
    """Those besides the machine's own that the profile covers, where it has the machine's own at all."""
    own = ARCHITECTURES.get(os.uname().machine, ("", ""))[0]
    listed = set(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if entry["architecture"] == own:
            listed |= {own, *(entry.get("subArchitectures") or [])}
    return sorted(OTHERS[name] for name in listed if name in OTHERS and own in listed)


def _action(name: object, errno_ret: object, where: str) -> int:
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        if errno_ret is not None and not (isinstance(errno_ret, int) and 0 <= errno_ret <= 4095):
            raise ProfileError(f"{where}: errnoRet {errno_ret!r} is no error number")
        number = errno.EPERM if errno_ret is None else errno_ret
        return int(pyseccomp.ERRNO(number) if name == "SCMP_ACT_ERRNO" else pyseccomp.TRACE(number))
    if name not in ACTIONS:
        raise ProfileError(f"{where}: unknown action {name!r}; known are SCMP_ACT_ERRNO, {', '.join(ACTIONS)}")
    return int(ACTIONS[str(name)])


def _add_rule(
    filter_: pyseccomp.SyscallFilter, default: int, rule: Mapping[str, Any], where: str, capabilities: frozenset[str]
) -> None:
    _known(rule, RULE_KEYS, where)
    if not _applies(rule, capabilities):
        return
    action = _action(rule.get("action"), rule.get("errnoRet"), where)
    if action == default:
        return  # libseccomp refuses what says nothing
    names = rule.get("names") or ([rule["name"]] if rule.get("name") else [])
    if not names or not all(isinstance(name, str) for name in names):
        raise ProfileError(f"{where}.names must be a list of names of system calls")
    for name in names:
        number = int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), name))
        if number >= 0:  # else this machine has no such call, and none can be made
            for arguments in _arguments(rule.get("args") or [], where):
                filter_.add_rule(action, number, *arguments)


def _applies(rule: Mapping[str, Any], capabilities: frozenset[str]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    for holder in (includes, excludes):
        _known(holder, {"caps", "arches", "minKernel"}, "includes and excludes")
    machine = set(ARCHITECTURES.get(os.uname().machine, ()))
    kernel = _version(os.uname().release)
    if excludes.get("arches") and machine & set(excludes["arches"]):
        return False
    if excludes.get("caps") and capabilities & set(excludes["caps"]):
        return False
    if excludes.get("minKernel") and kernel >= _version(excludes["minKernel"]):
        return False
    if includes.get("arches") and not machine & set(includes["arches"]):
        return False
    if includes.get("caps") and not set(includes["caps"]) <= capabilities:
        return False
    return not includes.get("minKernel") or kernel >= _version(includes["minKernel"])


def _version(text: str) -> tuple[int, int]:
    """4.8 of "4.8" or "6.18.0-custom"."""
    parts = text.partition("-")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError) as fault:
        raise ProfileError(f"minKernel {text!r} is not like 4.8") from fault


def _arguments(args: Sequence[Mapping[str, Any]], where: str) -> list[list[pyseccomp.Arg]]:
    """The conditions of a rule: all of one list must hold. Several on the same argument are alternatives, since a
    filter takes only one each."""
    made = []
    for arg in args:
        _known(arg, {"index", "value", "valueTwo", "op"}, f"{where}.args")
        if arg.get("op") not in OPERATORS or arg.get("index") not in range(6):
            raise ProfileError(f"{where}.args: op {arg.get('op')!r} of argument {arg.get('index')!r} is not known")
        operator, value, second = OPERATORS[arg["op"]], int(arg.get("value", 0)), int(arg.get("valueTwo", 0))
        two = (value, second) if arg["op"] == "SCMP_CMP_MASKED_EQ" else (value,)
        made.append(pyseccomp.Arg(arg["index"], operator, *two))
    indexes = [arg["index"] for arg in args]
    return [[one] for one in made] if len(set(indexes)) < len(indexes) else [made]
