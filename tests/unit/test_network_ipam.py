"""Pod addresses: none twice, none reused too soon, kept over restarts."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from shoal.agent.network import rules
from shoal.agent.network.ipam import Leases, RangeFull, gateway, next_address
from shoal.agent.network.linux import link_name, mac_of
from shoal.agent.network.port import HostPort, NetworkFault

RANGE = IPv4Network("10.244.3.0/29")  # gateway .1, pods .2 to .6


def take(leases: Leases, uid: str, cidr: IPv4Network = RANGE) -> IPv4Address:
    return leases.take([uid], cidr)[uid]


def test_addresses_go_round_before_one_is_used_again(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "a.json")
    first = take(leases, "a")
    leases.free(["a"])
    second = take(leases, "b")
    assert (str(first), str(second)) == ("10.244.3.2", "10.244.3.3")


def test_the_same_pod_gets_the_same_address_also_after_a_restart(tmp_path: Path) -> None:
    address = take(Leases(tmp_path / "a.json"), "a")
    again = Leases(tmp_path / "a.json")
    assert again.take(["b", "a"], RANGE)["a"] == address
    assert take(again, "b") != address
    assert len(again.held) == 2


def test_several_are_served_while_there_is_room(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "a.json")
    take(leases, "old")
    got = leases.take([*(f"pod{i}" for i in range(9)), "old"], RANGE)
    assert list(got) == ["pod0", "pod1", "pod2", "pod3"] and len(set(leases.held.values())) == 5
    assert Leases(tmp_path / "a.json").held == leases.held
    leases.free(["pod0", "pod1", "never"])
    assert set(Leases(tmp_path / "a.json").held) == {"old", "pod2", "pod3"}


def test_a_full_range_says_so(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "a.json")
    taken = {take(leases, f"pod{i}") for i in range(5)}
    assert len(taken) == 5 and gateway(RANGE) not in taken
    with pytest.raises(RangeFull, match="all 5 pod addresses"):
        take(leases, "one-more")
    leases.free(["pod2"])
    assert take(leases, "one-more") in taken


def test_an_address_of_another_range_is_replaced(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "a.json")
    take(leases, "a")
    assert take(leases, "a", IPv4Network("10.244.9.0/29")) == IPv4Address("10.244.9.2")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"held": {"a": "x"}, "last": null}', '{"last": null}'])
def test_a_damaged_file_is_not_guessed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(NetworkFault, match=r"is damaged .*move the file away"):
        Leases(path)
    assert path.read_text() == text


def test_next_address_of_a_range_without_room() -> None:
    with pytest.raises(RangeFull):
        next_address(IPv4Network("10.0.0.0/31"), set(), None)


def test_link_names_fit_and_differ() -> None:
    assert len(link_name("0123")) <= 15
    assert link_name("a") != link_name("b")
    assert mac_of(IPv4Address("10.244.3.2")) == "0a:58:0a:f4:03:02"


def test_rules_name_every_pod() -> None:
    pods, cluster = "10.244.3.0/24", "10.244.0.0/16"
    ports = [HostPort("tcp", "", 8080, 80), HostPort("udp", "192.168.7.1", 53, 5353)]
    bound = {"shv1": ("10.244.3.2", "0a:58:0a:f4:03:02")}
    text = rules.ruleset("shoal0", pods, cluster, bound, {"10.244.3.2": ports})
    assert 'elements = { "shv1" . 10.244.3.2 . 0a:58:0a:f4:03:02 }' in text
    assert "elements = { tcp . 8080 : 10.244.3.2 . 80 }" in text
    assert "elements = { udp . 192.168.7.1 . 53 : 10.244.3.2 . 5353 }" in text
    assert "elements" not in rules.ruleset("shoal0", pods, cluster, {}, {})
