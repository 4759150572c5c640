"""Laws of quantities, over random ones."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from shoal.proto import quantity

SUFFIXES: dict[str, Fraction] = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
}
SUFFIXES |= {s: Fraction(1000 ** (i + 1)) for i, s in enumerate("kMGTPE")}
SUFFIXES |= {f"{s}i": Fraction(1024 ** (i + 1)) for i, s in enumerate("KMGTPE")}
SUFFIXES |= {f"e{n}": Fraction(10) ** n for n in range(-9, 18)}


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Fraction]:
    whole, fraction = draw(st.integers(0, 10**9)), draw(st.text("0123456789", max_size=9))
    sign, suffix = draw(st.sampled_from(["", "+", "-"])), draw(st.sampled_from(sorted(SUFFIXES)))
    number = f"{whole}.{fraction}" if fraction or draw(st.booleans()) else str(whole)
    value = Fraction(f"{whole}.{fraction or 0}") * SUFFIXES[suffix]
    return f"{sign}{number}{suffix}", -value if sign == "-" else value


def away(value: Fraction) -> int:
    return -(value // 1 * -1) if value == value // 1 else (1 if value > 0 else -1) * (abs(value) // 1 + 1)


@given(written())
def test_value_is_the_arithmetic_one(case: tuple[str, Fraction]) -> None:
    text, value = case
    cap = quantity.MAX_UNITS
    bounded = max(Fraction(-cap), min(Fraction(cap), value))
    amount = quantity.parse(text)
    assert amount.nanos == away(bounded * 10**9)
    assert amount.milli() == away(Fraction(amount.nanos, 10**6))
    assert amount.whole() == away(Fraction(amount.nanos, 10**9))


@given(written())
def test_canonical_form_is_a_fixed_point(case: tuple[str, Fraction]) -> None:
    amount = quantity.parse(case[0])
    text = amount.canonical()
    again = quantity.parse(text)
    assert again.canonical() == text
    if amount.notation == quantity.BINARY_SI and abs(amount.nanos) >= 1024 * 10**9:
        assert again.nanos == amount.whole() * 10**9  # binary forms hold whole bytes
    else:
        assert again.nanos == amount.nanos


@given(st.integers(-(10**15), 10**15))
def test_numbers_come_back(number: int) -> None:
    assert quantity.milli(quantity.of_milli(number)) == number
    assert quantity.whole(quantity.of_bytes(number)) == number


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        quantity.parse(text)
    except quantity.QuantityError as refused:
        assert "is not a quantity" in str(refused)
