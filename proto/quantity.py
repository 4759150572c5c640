"""Resource amounts as Kubernetes writes them (apimachinery's resource.Quantity): "250m", "1.5Gi", "2e3", "4"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

NANOS_PER_UNIT = 10**9
NANOS_PER_MILLI = 10**6
MAX_UNITS = 2**63 - 1  # larger amounts are capped, as Kubernetes does
MAX_TEXT = 64  # characters; bounds the work that a hostile amount can cause
MAX_EXPONENT = 64  # beyond this every amount is capped, or rounds up to one nano

DECIMAL_SI = "DecimalSI"
BINARY_SI = "BinarySI"
DECIMAL_EXPONENT = "DecimalExponent"

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL_SUFFIX = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_BINARY_SUFFIX = {0: ""} | {power: suffix for suffix, power in _BINARY.items()}
_SYNTAX = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?([A-Za-z]*|[eE][+-]?[0-9]+)", re.ASCII)


class QuantityError(ValueError):
    """The text is not a quantity; the message says what was given and what one looks like."""


@dataclass(frozen=True, slots=True)
class Amount:
    """An exact amount in billionths of the unit, and the notation that it was written in."""

    nanos: int
    notation: str = DECIMAL_SI

    def milli(self) -> int:
        """Thousandths of the unit (milli-CPU), rounded away from zero."""
        return _divide_away(self.nanos, NANOS_PER_MILLI)

    def whole(self) -> int:
        """Whole units (bytes, pods), rounded away from zero."""
        return _divide_away(self.nanos, NANOS_PER_UNIT)

    def canonical(self) -> str:
        """Kubernetes' canonical form: no fraction, the largest suffix that loses nothing, the notation kept."""
        if self.notation == BINARY_SI and abs(self.nanos) >= 1024 * NANOS_PER_UNIT:
            return _binary_text(self.whole())
        return _decimal_text(self.nanos, exponent_notation=self.notation == DECIMAL_EXPONENT)


@lru_cache(maxsize=4096)
def parse(text: str) -> Amount:
    """The amount that `text` says; finer than a billionth is rounded up, beyond 2^63-1 is capped."""
    match = _SYNTAX.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None or not (match[2] or match[3]):
        raise _refusal(text)
    sign, digits, fraction, suffix = match[1], match[2], match[3] or "", match[4]
    mantissa = int(digits + fraction)
    if suffix in _BINARY:
        nanos = _divide_away(mantissa * 1024 ** _BINARY[suffix] * NANOS_PER_UNIT, 10 ** len(fraction))
        notation = BINARY_SI
    else:
        exponent, notation = _decimal_exponent(suffix, text)
        nanos = _scale(mantissa, exponent - len(fraction) + 9)
    nanos = min(nanos, MAX_UNITS * NANOS_PER_UNIT)
    return Amount(-nanos if sign == "-" else nanos, notation)


def milli(text: str) -> int:
    """The amount in thousandths, rounded up: milli-CPU."""
    return parse(text).milli()


def whole(text: str) -> int:
    """The amount in whole units, rounded up: bytes, pods, devices."""
    return parse(text).whole()


def canonical(text: str) -> str:
    """The canonical form of a quantity's text."""
    return parse(text).canonical()


def of_milli(value: int) -> str:
    """The canonical text of that many thousandths ("1500m", "2")."""
    return Amount(value * NANOS_PER_MILLI).canonical()


def of_bytes(value: int) -> str:
    """The canonical text of that many bytes, with binary suffixes where they are exact."""
    return Amount(value * NANOS_PER_UNIT, BINARY_SI).canonical()


def _decimal_exponent(suffix: str, text: str) -> tuple[int, str]:
    if suffix in _DECIMAL:
        return _DECIMAL[suffix], DECIMAL_SI
    if suffix[0] in "eE" and len(suffix) > 1 and not suffix[1].isalpha():
        exponent = int(suffix[1:])
        return max(-MAX_EXPONENT * 2, min(MAX_EXPONENT * 2, exponent)), DECIMAL_EXPONENT
    raise _refusal(text)


def _scale(mantissa: int, exponent: int) -> int:
    if exponent >= 0:
        return mantissa * int(10 ** min(exponent, MAX_EXPONENT * 3))
    return _divide_away(mantissa, 10**-exponent)


def _divide_away(value: int, by: int) -> int:
    """Division that rounds away from zero."""
    quotient = -(-abs(value) // by)
    return -quotient if value < 0 else quotient


def _binary_text(value: int) -> str:
    power = 0
    while power < 6 and value % 1024 == 0:
        value //= 1024
        power += 1
    return f"{value}{_BINARY_SUFFIX[power]}"


def _decimal_text(nanos: int, *, exponent_notation: bool) -> str:
    if nanos == 0:
        return "0"
    exponent = -9
    while exponent < 18 and nanos % 1000 == 0:
        nanos //= 1000
        exponent += 3
    if not exponent_notation:
        return f"{nanos}{_DECIMAL_SUFFIX[exponent]}"
    return f"{nanos}e{exponent}" if exponent else str(nanos)


def _refusal(text: str) -> QuantityError:
    shown = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
    return QuantityError(
        f'"{shown}" is not a quantity: write a number with an optional suffix, such as 2, 0.5, 500m, 128Mi or 1G'
    )
