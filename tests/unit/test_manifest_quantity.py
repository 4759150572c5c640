"""Quantities as Kubernetes reads and prints them (apimachinery's resource/quantity_test.go has the same facts)."""

import pytest

from shoal.proto import quantity


@pytest.mark.parametrize(
    ("text", "canonical", "milli", "whole"),
    [
        ("0", "0", 0, 0),
        ("0Ki", "0", 0, 0),
        ("1", "1", 1000, 1),
        ("100m", "100m", 100, 1),
        ("1500m", "1500m", 1500, 2),
        ("1.5", "1500m", 1500, 2),
        ("0.1", "100m", 100, 1),
        (".5", "500m", 500, 1),
        ("5.", "5", 5000, 5),
        ("+2", "2", 2000, 2),
        ("-1.5", "-1500m", -1500, -2),
        ("1000", "1k", 1_000_000, 1000),
        ("1000k", "1M", 10**9, 10**6),
        ("1e3", "1e3", 10**6, 1000),
        ("12E6", "12e6", 12 * 10**9, 12 * 10**6),
        ("1e-3", "1e-3", 1, 1),
        ("1E", "1E", 10**21, 10**18),
        ("64Mi", "64Mi", 64 * 2**20 * 1000, 64 * 2**20),
        ("1024Ki", "1Mi", 2**20 * 1000, 2**20),
        ("1.5Gi", "1536Mi", 1536 * 2**20 * 1000, 1536 * 2**20),
        ("0.5Ki", "512", 512_000, 512),
        ("1.5Ki", "1536", 1_536_000, 1536),
        ("1.0001Ki", "1025", 1_024_103, 1025),
        ("0.0001Ki", "102400u", 103, 1),
        ("128974848", "128974848", 128974848000, 128974848),
        ("129e6", "129e6", 129 * 10**9, 129 * 10**6),
        ("1n", "1n", 1, 1),
        ("0.1n", "1n", 1, 1),
        ("1u", "1u", 1, 1),
        ("8Ei", "9223372036854775807", (2**63 - 1) * 1000, 2**63 - 1),
        ("9e99", None, (2**63 - 1) * 1000, 2**63 - 1),
        ("1e-999999999", "1e-9", 1, 1),
        ("0e999999999", "0", 0, 0),
    ],
)
def test_reads_and_prints(text: str, canonical: str | None, milli: int, whole: int) -> None:
    amount = quantity.parse(text)
    if canonical is not None:
        assert amount.canonical() == canonical
    assert (amount.milli(), amount.whole()) == (milli, whole)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "+",
        "m",
        "Ki",
        "1 ",
        " 1",
        "1K",
        "1KB",
        "1mi",
        "1Mib",
        "0x10",
        "1e",
        "1e+",
        "1.2.3",
        "--1",
        "1,5",
        "1_0",
        "١",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(quantity.QuantityError, match="is not a quantity: write a number"):
        quantity.parse(text)


def test_refuses_long_texts_without_work() -> None:
    with pytest.raises(quantity.QuantityError):
        quantity.parse("1" * 10_000_000)


def test_makes_texts_from_numbers() -> None:
    assert quantity.of_milli(1500) == "1500m"
    assert quantity.of_milli(4000) == "4"
    assert quantity.of_bytes(64 * 2**20) == "64Mi"
    assert quantity.of_bytes(1000) == "1k"
    assert quantity.of_bytes(1500) == "1500"
