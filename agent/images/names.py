"""Image names: Docker's reference grammar and its short forms, as people type them (distribution/reference)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.agent.images.port import ImageFault

DEFAULT_DOMAIN = "docker.io"
LEGACY_DOMAIN = "index.docker.io"
OFFICIAL = "library/"
DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 255  # characters of domain and path together
MAX_SHOWN = 80  # characters of a bad name that a message repeats

_DOMAIN = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A whole name: domain and path always, tag or digest or both."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Whether `text` is a digest by itself (sha256:... or sha512:...)."""
    return _DIGEST.fullmatch(text) is not None


def is_domain(text: str) -> bool:
    """Whether `text` is host[:port] as names have it."""
    return len(text) <= MAX_NAME_LENGTH and _DOMAIN.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """`nginx` -> docker.io/library/nginx:latest. Raises ImageFault(InvalidImageName) that says what is wrong."""
    if not text:
        raise _invalid(text, "it is empty")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _invalid(text, "what follows '@' must be sha256: and 64 lower-case hexadecimal digits")
    name, tag = _split_tag(text, rest)
    if _IDENTIFIER.fullmatch(name):
        raise _invalid(text, f"64 hexadecimal digits are an image id: write sha256:{name}")
    domain, path = _split_domain(name)
    _check(text, name, domain, path)
    return Reference(domain, path, tag or ("" if digest else DEFAULT_TAG), digest)


def normalise(text: str) -> str:
    """The one full spelling of a name. Raises ImageFault(InvalidImageName)."""
    return str(parse(text))


def _split_tag(text: str, rest: str) -> tuple[str, str]:
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag or head.endswith("/"):
        return rest, ""
    if not _TAG.fullmatch(tag):
        raise _invalid(text, f"the tag {_shown(tag)} must be 1 to 128 letters, digits, '_', '.' or '-', not first '.-'")
    return head, tag


def _split_domain(name: str) -> tuple[str, str]:
    head, slash, rest = name.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        head, rest = DEFAULT_DOMAIN, name
    if head == LEGACY_DOMAIN:
        head = DEFAULT_DOMAIN
    if head == DEFAULT_DOMAIN and "/" not in rest:
        rest = OFFICIAL + rest
    return head, rest


def _check(text: str, name: str, domain: str, path: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text, f"{_shown(domain)} is not a registry's host name")
    if len(domain) + 1 + len(path) > MAX_NAME_LENGTH:
        raise _invalid(text, f"the name has more than {MAX_NAME_LENGTH} characters")
    if path.removeprefix(OFFICIAL) != path.removeprefix(OFFICIAL).lower():
        raise _invalid(text, f"a repository name is lower case: write {_shown(name.lower())}")
    for part in path.split("/"):
        if not _COMPONENT.fullmatch(part):
            why = "an empty part" if not part else f"the part {_shown(part)}"
            raise _invalid(text, f"{why} is not allowed: use a-z and 0-9, parted by one '.', '_', '__' or '-'")


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def _invalid(text: str, why: str) -> ImageFault:
    return ImageFault("InvalidImageName", f"the image name {_shown(text)} is not valid: {why}")
