"""What people may type: kinds, names, contexts, and how little is imported for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.deploy.cli import contexts, naming
from shoal.deploy.cli.failures import USAGE, CommandError
from shoal.deploy.cli.main import ELSEWHERE, VERBS, cli, run
from shoal.deploy.cli.naming import Wanted


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["pods"], [Wanted("Pod")]),
        (["po,deploy"], [Wanted("Pod"), Wanted("Deployment")]),
        (["all"], [Wanted("Pod"), Wanted("Deployment"), Wanted("ReplicaSet")]),
        (["Deployments.apps", "web"], [Wanted("Deployment", ("web",))]),
        (["no", "a", "b", "a"], [Wanted("Node", ("a", "b"))]),
        (["pod/a", "deploy/b"], [Wanted("Pod", ("a",)), Wanted("Deployment", ("b",))]),
        (["cm", "x"], [Wanted("ConfigMap", ("x",))]),
        (["pc,pdb,pg"], [Wanted("PriorityClass"), Wanted("PodDisruptionBudget"), Wanted("PodGroup")]),
        (["podgroups.scheduling.x-k8s.io", "g"], [Wanted("PodGroup", ("g",))]),
    ],
)
def test_objects(words: list[str], meant: list[Wanted]) -> None:
    assert naming.wanted(words) == meant


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "say what"),
        (["services"], "Service is not supported"),
        (["ingress", "x"], "Ingress is not supported"),
        (["podz"], 'did you mean "pod'),
        (["banana"], "no kind is called"),
        (["pod/a", "b"], "write each as KIND/NAME"),
        (["pod/"], "write each as KIND/NAME"),
        (["pod/a/b"], "write each as KIND/NAME"),
    ],
)
def test_bad_objects(words: list[str], why: str) -> None:
    with pytest.raises(CommandError, match=why) as refused:
        naming.wanted(words)
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["gett"], 2, "did you mean 'get'?"),
        (["get", "pods", "--nope"], 2, "No such option"),
        (["get", "pods", "-o", "xml"], 2, "xml"),
        (["get", "pods", "-l", "a=="], 1, ""),
        (["get", "pods", "-l", "=a"], 2, "is not a label key"),
        (["get", "pods", "--field-selector", "x=1"], 2, "cannot be selected"),
        (["get", "pod", "a", "-A"], 2, "use -n"),
        (["get", "pods", "-A", "-n", "x"], 2, "exclude each other"),
        (["delete", "pods"], 2, "which Pods?"),
        (["delete", "pod", "a", "--all"], 2, "exclude"),
        (["scale", "pod/a", "--replicas", "1"], 2, "has no replicas"),
        (["scale", "deploy/a", "--replicas", "-1"], 2, "-1"),
        (["exec", "a"], 2, "Missing argument"),
        (["apply"], 2, "say what to apply: -f FILE, or --plan PLAN"),
        (["apply", "--plan", "p", "-f", "x"], 2, "it excludes -f"),
        (["apply", "--plan", "/nowhere/p"], 1, "cannot read the plan /nowhere/p: No such file"),
        (["plan"], 2, "Missing option"),
        (["plan", "-f", "/nowhere/x.yaml"], 1, "cannot read /nowhere/x.yaml: No such file"),
        (["whatif"], 2, "--fail NODE, --drain NODE, --add N LIKE NODE or --scale NAME=N"),
        (["whatif", "--fail", "a", "--drain", "a"], 2, "a cannot both fail and be drained"),
        (["whatif", "--add", "3"], 2, "--add is given 1 times and LIKE NODE 0 times"),
        (["whatif", "--add", "3", "LIKE"], 2, "one for each"),
        (["whatif", "--add", "3", "like", "a", "--like", "b"], 2, "not both"),
        (["whatif", "--add", "0", "LIKE", "a"], 2, "0 is not in the range"),
        (["whatif", "--add", "3", "LOVE", "a"], 2, "write --add N LIKE NODE"),
        (["whatif", "--scale", "web"], 2, "write --scale NAME=N"),
        (["whatif", "--scale", "banana/web=3"], 2, "no kind is called"),
        (["whatif", "--scale", "web=99999999999"], 2, "write --scale NAME=N"),
        (["fit", "-f", "x", "--limit", "0"], 2, "0 is not in the range"),
        (["rebalance", "--max-moves", "0"], 2, "0 is not in the range"),
        (["rebalance", "-o", "json"], 2, "is for --dry-run"),
        (["apply", "-f", "https://example.com/x.yaml"], 1, "addresses are not fetched"),
        (["apply", "-f", "/nowhere/x.yaml"], 1, "cannot read /nowhere/x.yaml: No such file"),
        (["apply", "-f", "x", "--timeout", "soon"], 2, "is not a duration"),
        (["events", "--for", "web"], 2, "write KIND/NAME"),
        (["get", "pods"], 1, "no cluster is configured"),
        (["config", "use-context", "x"], 1, "no cluster is configured"),
        (["image", "pull"], 2, "Missing argument"),
        (["image", "ls", "-q", "-o", "json"], 2, "exclude each other"),
        (["image", "prune"], 2, "say -y, or --dry-run"),
        (["image", "load", "/nowhere.tar"], 1, "/nowhere.tar: No such file"),
        (["login", "a.example", "-u", "anna", "-p", "fish"], 2, "--password-stdin"),
        (["login", "a.example"], 2, "there is no terminal to ask at"),
        (["login", "a.example", "--password-stdin"], 2, "needs -u"),
        (["login", "a b"], 1, "is not a registry"),
        (["logout", "a.example"], 1, "there is no login at a.example"),
    ],
)
def test_exit_codes(
    line: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert run(line) == code
    assert said in capsys.readouterr().err


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        assert run([verb, "--help"]) == 0
    capsys.readouterr()
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert set(cli.list_commands(None)) == set(VERBS)  # type: ignore[arg-type]


HEAVY = ("grpc", "google.protobuf", "yaml", "cryptography", "asyncio", "numpy", "aiohttp")
PROBE = """
import sys
from shoal.deploy.cli.main import run
code = run(sys.argv[1:])
print(",".join(sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "line", [["--help"], ["completion", "zsh"], *([verb, "--help"] for verb in VERBS)], ids=" ".join
)
def test_nothing_heavy_is_imported_before_it_is_needed(line: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *line], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    modules = done.stdout.rsplit("\n", 2)[-2].split(",")
    assert [name for name in modules if name in HEAVY] == []


def test_completion_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert run(["completion", shell]) == 0
        assert "_SHOAL_COMPLETE" in capsys.readouterr().out


# ---- contexts ----
GOOD = """\
current-context: a
contexts:
- name: a
  servers: ["127.0.0.1:7600"]
  ca: ca.crt
  certificate: /abs/admin.crt
  key: |
    -----BEGIN PRIVATE KEY-----
    x
"""


def config(tmp_path: Path, text: str) -> contexts.Config:
    path = tmp_path / "config"
    path.write_text(text)
    return contexts.load(path)


def test_contexts(tmp_path: Path) -> None:
    chosen = config(tmp_path, GOOD).choose(None)
    assert (chosen.ca, chosen.certificate) == (str(tmp_path / "ca.crt"), "/abs/admin.crt")
    assert chosen.pem("key").startswith(b"-----BEGIN")
    with pytest.raises(CommandError, match=r"cannot read the ca file .*ca.crt: No such file"):
        chosen.pem("ca")
    with pytest.raises(CommandError, match='there is no context "b"'):
        config(tmp_path, GOOD).choose("b")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("contexts:", "context:", "must hold current-context"),
        ("  ca: ca.crt\n", "", r"contexts\[0\].ca: is missing"),
        ("name: a", "name: 5", r"contexts\[0\].name: is missing or not a text"),
        ("  ca:", "  cacert:", r"contexts\[0\].cacert: unknown field"),
        ('["127.0.0.1:7600"]', "127.0.0.1", "must be a list of host:port"),
        ("contexts:", "contexts: [", "is not valid YAML"),
        ("current-context: a", "current-context: [a]", "must hold current-context"),
    ],
)
def test_bad_contexts(old: str, new: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=why):
        config(tmp_path, GOOD.replace(old, new))


def test_contexts_are_written_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep/config"
    made = contexts.Context("dev", ("127.0.0.1:1",), "/ca", "/crt", "/key")
    contexts.put(made, path=path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert contexts.load(path).choose(None) == made
    contexts.put(contexts.Context("other", ("h:1",), "/ca", "/crt", "/key", "team"), path=path, use=False)
    assert contexts.load(path).current == "dev"
    contexts.remove("dev", path=path)
    assert contexts.load(path).choose(None).namespace == "team"
    assert os.listdir(path.parent) == ["config"]


@pytest.mark.parametrize(
    ("verb", "advice"),
    [
        ("rollout", "apply --wait waits for a rollout"),
        ("drain", "give the node unschedulable: true under its spec, or a taint"),
        ("frobnicate", "see shoal --help"),
        ("descirbe", "did you mean 'describe'?"),
    ],
)
def test_a_verb_that_is_not_there_says_what_does_the_same(
    verb: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "x"]) == 2
    assert f"no verb is called '{verb}': {advice}" in capsys.readouterr().err


def test_no_verb_of_ours_is_said_to_be_missing() -> None:
    assert not ELSEWHERE.keys() & VERBS.keys()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gpu", '"gpu" is not NAME=N, such as shoal.dev/gpu=4'),
        ("gpu=4", '"gpu" needs a domain in front, such as example.com/gpu'),
        ("shoal.dev/gpu=-1", '"shoal.dev/gpu=-1" is not NAME=N'),
        ("shoal.dev/gpu=1,shoal.dev/gpus=2", 'did you mean "shoal.dev/gpu"?'),
        ("shoal.dev/gpu-milli=4000", "use shoal.dev/gpu=N for N devices"),
    ],
)
def test_devices_of_a_development_cluster(text: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--node-resources", text]) == USAGE
    assert why in capsys.readouterr().err
