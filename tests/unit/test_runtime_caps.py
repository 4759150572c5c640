"""Capabilities by name."""

from __future__ import annotations

import pytest

from shoal.agent.runtime import caps


def test_numbers_follow_the_kernels_header() -> None:
    known = {"CHOWN": 0, "NET_RAW": 13, "SYS_ADMIN": 21, "MKNOD": 27, "SETFCAP": 31, "CHECKPOINT_RESTORE": 40}
    assert {name: caps.NUMBERS[name] for name in known} == known
    assert len(caps.NAMES) == 41


def test_names_in_every_spelling() -> None:
    assert caps.number("NET_RAW") == caps.number("CAP_NET_RAW") == caps.number("cap_net_raw") == 13


@pytest.mark.parametrize("name", ["", "CAP_", "NET-RAW", "ALL "])
def test_unknown_names(name: str) -> None:
    with pytest.raises(caps.UnknownCapability):
        caps.number(name)


def test_default_set_lacks_the_dangerous_ones() -> None:
    assert not caps.DEFAULT & {"NET_RAW", "MKNOD", "SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "SYS_MODULE"}
    assert caps.chosen([], [], -1) == caps.mask(caps.DEFAULT) == 0xA00405FB & ~(1 << 13) & ~(1 << 27)


def test_drop() -> None:
    assert caps.chosen([], ["ALL"], -1) == caps.chosen([], ["CHOWN", "all"], -1) == 0
    assert caps.chosen([], ["CHOWN", "CHOWN"], -1) == caps.mask(caps.DEFAULT) & ~1
    assert caps.chosen([], ["SYS_ADMIN"], -1) == caps.mask(caps.DEFAULT)


def test_add() -> None:
    everything = (1 << len(caps.NAMES)) - 1
    assert caps.chosen(["NET_ADMIN"], [], everything) == caps.mask(caps.DEFAULT | {"NET_ADMIN"})
    assert caps.chosen(["NET_ADMIN", "CHOWN"], ["all"], everything) == caps.mask(["NET_ADMIN", "CHOWN"])
    assert caps.chosen(["ALL"], ["SYS_ADMIN"], everything) == everything & ~caps.mask(["SYS_ADMIN"])
    assert caps.chosen(["CHOWN"], ["CHOWN"], everything) == caps.mask(caps.DEFAULT - {"CHOWN"})


def test_what_the_node_lacks_cannot_be_given() -> None:
    own = caps.mask(caps.DEFAULT)
    assert caps.chosen(["ALL"], [], own) == own
    with pytest.raises(caps.UnknownCapability, match="lacks SYS_TIME"):
        caps.chosen(["SYS_TIME"], [], own)
