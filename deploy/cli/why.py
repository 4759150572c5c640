"""`shoal why`: tells in plain words why something waits, is not ready, restarts, or has died."""

from __future__ import annotations

import time
from typing import Any

import click

from shoal.deploy.cli.completing import objects
from shoal.deploy.cli.failures import OK, USAGE, CommandError, Refused
from shoal.deploy.cli.naming import kind_of
from shoal.deploy.cli.options import Session, with_session

KINDS = ("Pod", "Deployment", "ReplicaSet", "Node")


@click.command("why")
@with_session
@click.argument("what", nargs=-1, required=True, metavar="POD | KIND/NAME", shell_complete=objects)
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), help="For programs, with all that is known.")
@click.option("--lines", type=click.IntRange(0, 50), default=10, show_default=True, help="Of each log's end.")
def command(session: Session, what: tuple[str, ...], output: str | None, lines: int) -> int:
    """Tell why something waits, is not ready, restarts, or has died.

    A pod, also one that is gone; a deployment or replicaset (its worst pod); or a node.
    """
    from shoal.deploy.cli.listing import colours_wanted
    from shoal.deploy.cli.printers import decision
    from shoal.deploy.cli.printers.reasons import as_decided, gated
    from shoal.deploy.cli.printers.stories import as_tree, text

    kind, name = _meant(what)
    story = _story(session, kind, name)
    decided = _decided(session, story)
    if decided is not None:
        story = as_decided(story, decided.message)
    if output:
        from shoal.proto.printing import to_json, to_yaml

        told = as_tree(story) | ({"scheduling": decision.tree(decided)} if decided is not None else {})
        print((to_yaml if output == "yaml" else to_json)(told).rstrip("\n"))
    else:
        now = time.time()
        more = list(decision.lines(decided, now, gated=gated(story))) if decided is not None else []
        print("\n".join([*text(story, now, lines, colours=colours_wanted()), *([""] if more else []), *more]))
    return OK


def _decided(session: Session, story: Any) -> Any:
    """What the scheduler says of the story's pod; None when there is none, or the pod has ended or is gone."""
    from shoal.proto.v1 import cluster_pb2 as c

    if not story.pod:
        return None
    try:
        return session.client.why(c.Key(kind="Pod", namespace=story.namespace, name=story.pod))
    except Refused as refused:
        if refused.reason != "NotFound":
            raise
        return None


def _meant(what: tuple[str, ...]) -> tuple[str, str]:
    """NAME, KIND/NAME or KIND NAME. Raises CommandError (usage)."""
    if len(what) > 2 or (len(what) == 2 and "/" in "".join(what)):
        raise CommandError("why explains one thing: name a pod, or KIND/NAME", USAGE)
    kind, _, name = "/".join(what).rpartition("/")
    meant = kind_of(kind) if kind else "Pod"
    if meant not in KINDS:
        raise CommandError(f"why explains pods, deployments, replicasets and nodes, not a {meant}", USAGE)
    return meant, name


def _story(session: Session, kind: str, name: str) -> Any:
    from shoal.deploy.cli.printers import reasons

    if kind == "Pod":
        return _pod_story(session, name)
    found: Any = session.client.get(kind, "" if kind == "Node" else session.namespace, name)
    if kind == "Node":
        pods: Any = session.client.list_objects("Pod", fields=f"spec.nodeName={name}").objects
        return reasons.of_node(found, list(pods))
    return _workload_story(session, found)


def _pod_story(session: Session, name: str) -> Any:
    """Raises Refused (NotFound) when there is neither the pod nor a certificate of it."""
    from shoal.deploy.cli.printers import reasons

    deaths: Any = session.client.list_objects("Death", session.namespace, fields=f"pod.name={name}").objects
    try:
        pod: Any = session.client.get("Pod", session.namespace, name)
    except Refused as refused:
        if refused.reason != "NotFound" or not deaths:
            raise
        return reasons.of_gone(name, session.namespace, list(deaths))
    return reasons.of_pod(pod, _events(session, "Pod", pod), list(deaths), _node_of(session, pod))


def _node_of(session: Session, pod: Any) -> Any:
    """None when it has none, or when it is gone or not for us to see."""
    if not pod.spec.nodeName:
        return None
    try:
        return session.client.get("Node", "", pod.spec.nodeName)
    except Refused:
        return None


def _events(session: Session, kind: str, obj: Any) -> list[Any]:
    fields = f"involvedObject.kind={kind},involvedObject.name={obj.metadata.name}"
    stored: Any = session.client.list_objects("Event", obj.metadata.namespace, fields=fields).objects
    return [event for event in stored if event.involvedObject.uid in ("", obj.metadata.uid)]


def _workload_story(session: Session, found: Any) -> Any:
    """The workload's own state, then that of its worst pod."""
    from dataclasses import replace

    from shoal.deploy.cli.printers import reasons
    from shoal.deploy.cli.printers.status import ready_state
    from shoal.proto.selector import from_message

    kind, selector = found.kind, from_message(found.spec.selector)
    subject = f"{kind.lower()}/{found.metadata.name}"
    listed: Any = session.client.list_objects("Pod", session.namespace).objects
    pods = [pod for pod in listed if selector.matches(pod.metadata.labels)]
    ready, how = ready_state(found)
    own = [reasons.Finding(kind.lower(), c.reason or c.type, c.message) for c in _faults(found)]
    pod = reasons.worst(pods)
    if pod is None or (ready and not reasons.badness(pod)):
        text = f"{subject}: {how}" + (": nothing is wrong" if ready and not own else "")
        return reasons.Story(subject, session.namespace, text, not ready or bool(own), own)
    story = _pod_story(session, pod.metadata.name)
    if kind == "Deployment":
        sets: Any = session.client.list_objects("ReplicaSet", session.namespace).objects
        mine = [rs for rs in sets if any(o.uid == found.metadata.uid for o in rs.metadata.ownerReferences)]
        changed = reasons.rollout(mine, pod)
        own += [changed] if changed is not None else []
    troubled = sum(1 for one in pods if reasons.badness(one))
    others = f" ({troubled} pods are in trouble, this is the worst)" if troubled > 1 else ""
    return replace(
        story, subject=subject, headline=f"{subject}: {how}; {story.headline}{others}", findings=[*own, *story.findings]
    )


def _faults(found: Any) -> list[Any]:
    """Conditions that say that something does not go on."""
    return [
        one
        for one in found.status.conditions
        if one.message and ((one.type == "ReplicaFailure" and one.status == "True") or one.status == "False")
    ]
