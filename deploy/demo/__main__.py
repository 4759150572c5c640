"""`make demo` and `make down`: a real cluster with the guestbook on it, used through the command as anybody would."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shoal.deploy.demo.push import CannotPush, push
from shoal.deploy.devcluster import leftovers
from shoal.deploy.devcluster.plan import DATA_ROOT, RUN_ROOT, load

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = Path("deploy/examples")  # all commands run in ROOT
IMAGES = Path(".cache/demo-images")
BEFORE = ROOT / ".cache/before-demo.json"  # what was on the machine before the cluster came
SHOAL = Path(sys.executable).with_name("shoal")
WAIT = "180s"
FETCH_TRIES = 20


class DemoFailed(Exception):
    """A step did not do what it should; the message says which."""


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def shoal(*arguments: str, quiet: bool = False, check: bool = True) -> str:
    """Runs the command; shows what a person would type and see, unless quiet. Returns its output."""
    if not quiet:
        print(f"$ shoal {' '.join(arguments)}", flush=True)
    done = subprocess.run([str(SHOAL), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if not quiet:
        print(done.stdout, end="", flush=True)
    if check and done.returncode != 0:
        raise DemoFailed(f"`shoal {' '.join(arguments)}` ended with {done.returncode}")
    return done.stdout


def show(*arguments: str) -> None:
    """As `shoal`, straight to the terminal, for what shows progress."""
    print(f"$ shoal {' '.join(arguments)}", flush=True)
    done = subprocess.run([str(SHOAL), *arguments], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"`shoal {' '.join(arguments)}` ended with {done.returncode}")


def pods(selector: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shoal("get", "pods", "-l", selector, "-o", "json", quiet=True))["items"]
    return found


def elsewhere(choices: list[dict[str, Any]], node: str) -> dict[str, Any]:
    """A pod that is not on the node."""
    for pod in choices:
        if pod["spec"]["nodeName"] != node:
            return pod
    raise DemoFailed(f"every pod is on {node}")


def ask(pod: str, command: str, wanted: str) -> str:
    """Runs a shell command in the pod until its output holds `wanted`."""
    out = ""
    for _ in range(FETCH_TRIES):
        out = shoal("exec", pod, "--", "sh", "-c", command, quiet=True, check=False)
        if wanted in out:
            return out.strip()
        time.sleep(0.5)
    raise DemoFailed(f"{pod}: {command!r} gave {out!r}, not {wanted!r}")


def fill_registry(name: str) -> None:
    plan = load(DATA_ROOT / name)
    if plan is None:
        raise DemoFailed(f"cluster {name} is gone")
    subprocess.run([sys.executable, "-m", "shoal.deploy.demo.images", "--out", str(IMAGES)], cwd=ROOT, check=True)
    for archive in sorted((ROOT / IMAGES).glob("*.tar")):
        print(f"pushed {', '.join(push(archive, plan.registry_address))} to {plan.registry_address}")


def show_pulls() -> None:
    """How long the first pull of each image took, by the pods' events; nothing when the nodes had them already."""
    events = json.loads(shoal("get", "events", "-o", "json", quiet=True))["items"]
    pulls = {event["message"] for event in events if event["reason"] == "Pulled"}
    for message in sorted(pulls):
        print(message)


def use_it() -> None:
    """The page of one pod is fetched from another node, and redis answers a pod on another node."""
    toolboxes, webs = pods("app=toolbox"), pods("app=guestbook,tier=frontend")
    web = webs[0]
    client = elsewhere(toolboxes, web["spec"]["nodeName"])
    page = ask(client["metadata"]["name"], f"wget -qO- http://{web['status']['podIP']}/", web["metadata"]["name"])
    print(f"{client['metadata']['name']} on {client['spec']['nodeName']} fetched from {web['spec']['nodeName']}:")
    print(f"    {page.splitlines()[0]}")
    redis = json.loads(shoal("get", "pod", "redis", "-o", "json", quiet=True))
    client = elsewhere(toolboxes, redis["spec"]["nodeName"])
    answer = ask(client["metadata"]["name"], f"printf 'PING\\r\\n' | nc -w 2 {redis['status']['podIP']} 6379", "PONG")
    print(f"redis on {redis['spec']['nodeName']} answered {client['spec']['nodeName']}: {answer}")


def up(options: argparse.Namespace) -> None:
    if not (DATA_ROOT / options.name / "cluster.json").exists():
        leftovers.save(leftovers.listing(), BEFORE)
    say("1. A cluster of real processes: etcd, a master, three nodes, an image registry")
    show("up", "--name", options.name, "--nodes", str(options.nodes), "--registry")
    say("2. Images, made from Debian's packages, into the registry; it serves them to the nodes in docker.io's place")
    fill_registry(options.name)
    say("3. The application; each node pulls what its pods need")
    show(
        "apply",
        "-f",
        str(EXAMPLES / "guestbook.yaml"),
        "-f",
        str(EXAMPLES / "toolbox.yaml"),
        "--wait",
        "--timeout",
        WAIT,
    )
    shoal("image", "ls")
    show_pulls()
    say("4. Packets between pods on different nodes")
    use_it()
    say("5. What is where")
    shoal("get", "nodes", "-o", "wide")
    shoal("get", "pods", "-o", "wide")
    command = SHOAL.relative_to(ROOT) if SHOAL.is_relative_to(ROOT) else SHOAL
    say("It runs until `make down`. Look around:")
    for line in (
        "get pods -o wide",
        "describe pod redis",
        "logs deploy/web",
        "exec -i deploy/toolbox -- sh",
        "scale deploy/web --replicas 5",
        "events",
    ):
        print(f"    {command} {line}")


def down(name: str) -> None:
    """Takes the cluster away and looks whether the machine is as it was."""
    show("down", "--name", name)
    before = leftovers.load(BEFORE)
    if before is None:
        return
    extra = leftovers.without_clusters(leftovers.wait_clean(before), RUN_ROOT)
    if extra:
        lines = "\n".join(f"    {kind}: {item}" for kind, items in extra.items() for item in items)
        raise DemoFailed(f"this is here now and was not before `make demo`:\n{lines}")
    BEFORE.unlink()
    print("nothing is left: processes, mounts, namespaces, cgroups, links and tables are as before `make demo`")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m shoal.deploy.demo", description=__doc__)
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--name", default="dev", metavar="NAME", help="the cluster (dev)")
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    try:
        if options.verb == "up":
            up(options)
        else:
            down(options.name)
    except (DemoFailed, CannotPush, OSError, subprocess.CalledProcessError) as fault:
        print(f"demo: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
