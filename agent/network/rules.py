"""The nftables text of a node: spoofed sources are dropped on the bridge, traffic that leaves the cluster is masked.

All of it lies in two tables named `shoal`, replaced as a whole in one transaction; nobody else's is touched.
"""

from __future__ import annotations

from collections.abc import Mapping

TABLE = "shoal"
LINK_PREFIX = "shv"


def element(link: str, address: str, mac: str) -> str:
    return f'"{link}" . {address} . {mac}'


def ruleset(bridge: str, pod_cidr: str, cluster_cidr: str, bound: Mapping[str, tuple[str, str]]) -> str:
    """The whole ruleset. `bound`: link -> (address, mac) of every pod."""
    elements = ", ".join(element(link, *bound[link]) for link in sorted(bound))
    filled = f"elements = {{ {elements} }}" if bound else ""
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
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {pod_cidr} ip daddr != {cluster_cidr} oifname != "{bridge}" masquerade
    }}
}}
"""


def bind(link: str, address: str, mac: str) -> str:
    return f"add element bridge {TABLE} bound {{ {element(link, address, mac)} }}\n"


def unbind(link: str, address: str, mac: str) -> str:
    """Succeeds also when the element is not there: it is added first, in the same transaction."""
    return bind(link, address, mac) + f"delete element bridge {TABLE} bound {{ {element(link, address, mac)} }}\n"


def remove() -> str:
    """Takes both tables away, there or not."""
    return "".join(f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in ("bridge", "ip"))
