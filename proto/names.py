"""The syntax of names (RFC 1123, RFC 6335, Kubernetes' qualified names, image references).

Each `not_...` gives None when the text is fine, else what is wrong with it and what to write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from shoal.proto.errors import nearest, shorten
from shoal.proto.selector import LABEL_NAME, LABEL_VALUE, SUBDOMAIN

MAX_LABEL = 63
MAX_SUBDOMAIN = 253
MAX_PORT_NAME = 15
MAX_IMAGE = 512
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+", re.ASCII)
_ENV_NAME = re.compile(r"[\x20-\x3c\x3e-\x7e]+")  # printable ASCII without "=" (Kubernetes 1.32 and later)
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:{_HOST}(?::[0-9]+)?/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?:@[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,128})?",
    re.ASCII,
)
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN"
    " SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE"
    " MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITIES = frozenset(_CAPABILITIES.split())  # capabilities(7)


def not_dns_label(text: str) -> str | None:
    """RFC 1123 label: namespaces, containers."""
    return _not(
        _DNS_LABEL, text, MAX_LABEL, "small letters, digits and '-', beginning and ending with a letter or digit"
    )


def not_dns_subdomain(text: str) -> str | None:
    """RFC 1123 subdomain: the names of most objects."""
    how = "small letters, digits, '-' and '.', each part beginning and ending with a letter or digit"
    return _not(SUBDOMAIN, text, MAX_SUBDOMAIN, how)


def _not(pattern: re.Pattern[str], text: str, limit: int, how: str) -> str | None:
    if len(text) > limit:
        return f"{shorten(text, 40)} has {len(text)} characters: at most {limit} are allowed"
    return None if pattern.fullmatch(text) else f"{shorten(text)} is not a valid name: use {how}"


def not_label_key(text: str) -> str | None:
    """A qualified name: [prefix/]name."""
    prefix, slash, name = text.rpartition("/")
    if slash and (len(prefix) > MAX_SUBDOMAIN or not SUBDOMAIN.fullmatch(prefix)):
        return f"the part before '/' in {shorten(text)} must be a domain name, such as example.com/{name or 'name'}"
    if LABEL_NAME.fullmatch(name):
        return None
    how = f"at most {MAX_LABEL} letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
    return f"{shorten(text)} is not a valid key: use {how}"


def not_label_value(text: str) -> str | None:
    """The value of a label."""
    if LABEL_VALUE.fullmatch(text):
        return None
    how = f"at most {MAX_LABEL} letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
    return f"{shorten(text)} is not a valid label value: use {how}"


def not_finalizer(text: str) -> str | None:
    """A finalizer: a qualified name with its domain."""
    wrong = not_label_key(text)
    if wrong is None and "/" not in text:
        return f"{shorten(text)} must have a domain in front, such as example.com/{text}"
    return wrong


def not_data_key(text: str) -> str | None:
    """A key of a ConfigMap or Secret: it may become a file's name."""
    if text in (".", "..") or text.startswith(".."):
        return f"{shorten(text)} is not a valid key: it must not begin with '..'"
    return _not(_DATA_KEY, text, MAX_SUBDOMAIN, "letters, digits, '-', '_' and '.'")


def not_env_name(text: str) -> str | None:
    """The name of an environment variable."""
    if not text:
        return "is missing: name the variable"
    return None if _ENV_NAME.fullmatch(text) else f"{shorten(text)} must be printable ASCII without '='"


def not_port_name(text: str) -> str | None:
    """An IANA service name (RFC 6335)."""
    how = "small letters, digits and single '-' between them, with at least one letter"
    return _not(_PORT_NAME, text, MAX_PORT_NAME, how)


def not_image(text: str) -> str | None:
    """An image reference: [host[:port]/]path[:tag][@digest]."""
    if not text:
        return "is missing: name the image, such as nginx:1.27"
    if text != text.strip():
        return f"{shorten(text)} has spaces around it: remove them"
    if len(text) <= MAX_IMAGE and _IMAGE.fullmatch(text):
        return None
    if _IMAGE.fullmatch(text.lower()):
        return f"{shorten(text)} is not a valid image: only a host and a tag may have capital letters"
    return f"{shorten(text)} is not a valid image: write [host[:port]/]name[:tag][@digest], such as nginx:1.27"


def not_capability(text: str) -> str | None:
    """A Linux capability without its prefix, or ALL."""
    if text == "ALL" or text in CAPABILITIES:
        return None
    bare = text.upper().removeprefix("CAP_")
    meant = bare if bare == "ALL" or bare in CAPABILITIES else nearest(bare, CAPABILITIES)
    return f"{shorten(text)} is not a capability" + (
        f": write {meant}" if meant else ": see capabilities(7), without CAP_"
    )


def not_one_of(text: str, valid: Sequence[str]) -> str | None:
    """An enumeration's value."""
    if text in valid:
        return None
    choices = ", ".join(valid)
    if not text:
        return f"is missing: use one of {choices}"
    meant = nearest(text, valid)
    return f"{shorten(text)} is not valid: " + (f'did you mean "{meant}"?' if meant else f"use one of {choices}")


def not_host(text: str) -> str | None:
    """The name or the address of a machine."""
    try:
        ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return not_dns_subdomain(text.lower())
    return None


def not_cidr(text: str) -> str | None:
    """An address range such as 10.0.1.0/24."""
    try:
        ip_network(text)
    except ValueError:
        return f"{shorten(text)} is not an address range such as 10.0.1.0/24"
    return None
