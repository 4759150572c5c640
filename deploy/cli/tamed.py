"""What a container has written, as a terminal may see it: colours stay, all that moves or asks it is shown."""

from __future__ import annotations

import re

# SGR (ECMA-48, 8.3.117) is the one sequence that only changes looks. C1 controls are two bytes in UTF-8.
_CONTROL = re.compile(rb"\x1b(\[[0-9;:]{0,40}m)?|\xc2[\x80-\x9f]|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]")
_BEGUN = re.compile(rb"(?:\x1b(?:\[[0-9;:]{0,40})?|\xc2)\Z")


class Tamer:
    """One stream of bytes. What may be the beginning of a sequence waits for the rest of it."""

    def __init__(self) -> None:
        self._begun = b""

    def feed(self, data: bytes) -> bytes:
        data, self._begun = self._begun + data, b""
        if (begun := _BEGUN.search(data[-64:])) is not None:
            self._begun = begun[0]
            data = data[: -len(begun[0])]
        return _CONTROL.sub(_shown, data)

    def finish(self) -> bytes:
        data, self._begun = self._begun, b""
        return _CONTROL.sub(_shown, data)


def _shown(match: re.Match[bytes]) -> bytes:
    """As `cat -v` writes them."""
    found = match[0]
    if match[1]:
        return found
    if found[0] == 0xC2:
        return b"M-^" + bytes([found[1] ^ 0xC0])
    return b"^" + bytes([found[0] ^ 0x40])
