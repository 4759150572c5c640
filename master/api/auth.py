"""Who may ask for what: the certificate's organization is the role (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.master.api.faults import Forbidden

ADMINS = "shoal:admins"
NODES = "shoal:nodes"
MASTERS = "shoal:masters"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: the organization and common name of its certificate."""

    organization: str
    name: str

    def __str__(self) -> str:
        return f"{self.organization or '(no organization)'}/{self.name or '(no name)'}"


def may_use_cluster(caller: Identity) -> None:
    """People and tools. Raises Forbidden."""
    if caller.organization != ADMINS:
        raise Forbidden(
            f"{caller} may not use the cluster's API: a certificate with organization {ADMINS} is needed "
            f"(`python -m shoal.deploy.certs issue FOLDER admin NAME` makes one)"
        )


def may_be_node(caller: Identity) -> str:
    """Agents; gives the node's name. Raises Forbidden."""
    if caller.organization != NODES or not caller.name:
        raise Forbidden(
            f"{caller} is no node: an agent needs a certificate with organization {NODES} and the node's name as its "
            f"common name"
        )
    return caller.name


def effective(caller: Identity, forwarded: str) -> Identity:
    """Who stands behind a call: a master may speak for somebody, nobody else may. Raises Forbidden."""
    if not forwarded:
        return caller
    if caller.organization != MASTERS:
        raise Forbidden(f"{caller} may not speak for others: only masters forward calls")
    organization, _, name = forwarded.partition("/")
    return Identity(organization, name)
