"""The nftables text of a node: spoofed sources are dropped on the bridge, traffic that leaves the cluster is masked,
host ports lead to their pods.

All of it lies in two tables named `shoal`, replaced as a whole in one transaction; nobody else's is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shoal.agent.network.port import HostPort

TABLE = "shoal"
LINK_PREFIX = "shv"


def element(link: str, address: str, mac: str) -> str:
    return f'"{link}" . {address} . {mac}'


def port_elements(address: str, ports: Iterable[HostPort]) -> tuple[list[str], list[str]]:
    """(those of map oneport, those of map anyport) for a pod with this address."""
    ones, anys = list[str](), list[str]()
    for port in ports:
        target = f"{address} . {port.target}"
        if port.address:
            ones.append(f"{port.protocol} . {port.address} . {port.port} : {target}")
        else:
            anys.append(f"{port.protocol} . {port.port} : {target}")
    return ones, anys


def _filled(elements: Sequence[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }}" if elements else ""


def ruleset(
    bridge: str,
    pod_cidr: str,
    cluster_cidr: str,
    bound: Mapping[str, tuple[str, str]],
    mapped: Mapping[str, Sequence[HostPort]],
) -> str:
    """The whole ruleset. `bound`: link -> (address, mac) of every pod; `mapped`: address -> the node's ports that lead
    to it."""
    filled = _filled([element(link, *bound[link]) for link in sorted(bound)])
    ports = [port_elements(address, mapped[address]) for address in sorted(mapped)]
    ones, anys = ([text for pod in ports for text in pod[which]] for which in (0, 1))
    return f"""\
add table bridge {TABLE}
delete table bridge {TABLE}
table bridge {TABLE} {{
    set bound {{
        typeof iifname . ip saddr . ether saddr
        {filled}
    }}
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        iifname "{LINK_PREFIX}*" jump pod
    }}
    chain pod {{
        ether type ip iifname . ip saddr . ether saddr @bound accept
        ether type arp arp operation {{ request, reply }} iifname . arp saddr ip . arp saddr ether @bound accept
        counter drop
    }}
}}
add table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
    map oneport {{
        type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
        {_filled(ones)}
    }}
    map anyport {{
        type inet_proto . inet_service : ipv4_addr . inet_service
        {_filled(anys)}
    }}
    chain ports {{
        dnat ip to meta l4proto . ip daddr . th dport map @oneport
        dnat ip to meta l4proto . th dport map @anyport
    }}
    chain prerouting {{
        type nat hook prerouting priority -100; policy accept;
        fib daddr type local jump ports
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local jump ports
    }}
    chain loopback {{
        type filter hook prerouting priority -150; policy accept;
        iifname "{bridge}" ip daddr 127.0.0.0/8 drop
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        oifname "{bridge}" ip saddr {{ {pod_cidr}, 127.0.0.0/8 }} ct status dnat masquerade
        ip saddr {pod_cidr} ip daddr != {cluster_cidr} oifname != "{bridge}" masquerade
    }}
}}
"""


def bind(link: str, address: str, mac: str) -> str:
    return f"add element bridge {TABLE} bound {{ {element(link, address, mac)} }}\n"


def unbind(link: str, address: str, mac: str) -> str:
    """Succeeds also when the element is not there: it is added first, in the same transaction."""
    return bind(link, address, mac) + f"delete element bridge {TABLE} bound {{ {element(link, address, mac)} }}\n"


def lead(address: str, ports: Iterable[HostPort]) -> str:
    """The node's ports lead to the pod with this address."""
    return "".join(f"add element ip {TABLE} {name} {{ {text} }}\n" for name, text in _by_map(address, ports))


def mislead(address: str, ports: Iterable[HostPort]) -> str:
    """The opposite; succeeds also when they do not, as `unbind`."""
    gone = "".join(f"delete element ip {TABLE} {name} {{ {text} }}\n" for name, text in _by_map(address, ports))
    return lead(address, ports) + gone


def _by_map(address: str, ports: Iterable[HostPort]) -> list[tuple[str, str]]:
    ones, anys = port_elements(address, ports)
    return [("oneport", text) for text in ones] + [("anyport", text) for text in anys]


def remove() -> str:
    """Takes both tables away, there or not."""
    return "".join(f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in ("bridge", "ip"))
