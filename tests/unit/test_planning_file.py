"""The plan file: what is written reads back, and what was changed since is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from shoal.deploy.cli import planfile
from shoal.deploy.cli.failures import CommandError
from shoal.deploy.cli.main import run
from shoal.proto.v1 import cluster_pb2 as c
from shoal.proto.v1 import objects_pb2 as o
from tests.planning_world import wished


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    secret = o.Secret(apiVersion="v1", kind="Secret")
    secret.metadata.name = "s"
    secret.data["a"] = b"\x00\xff"
    expected = c.PlanResponse(revision=2**60, cluster_incarnation="here")
    expected.objects.add(key=c.Key(kind="Deployment", name="web"), action="configured", uid="u", revision=7)
    expected.pods.add(fate="created", node="n1", owner=c.Key(kind="Deployment", name="web"))
    path = tmp_path / "web.plan"
    planfile.write(str(path), [wished(), secret], expected)
    return path


def test_a_plan_reads_back_as_it_was_written(plan: Path) -> None:
    found = planfile.read(str(plan))
    assert [obj.kind for obj in found.objects] == ["Deployment", "Secret"]
    assert found.objects[0] == wished()
    assert found.expected.revision == 2**60
    assert [(one.uid, one.revision) for one in found.expected.objects] == [("u", 7)]
    assert found.expected.pods[0].node == "n1"
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    assert [path.name for path in plan.parent.iterdir()] == ["web.plan"]


def test_a_plan_s_namespace_is_not_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "config"))
    wish = wished()
    wish.metadata.namespace = "here"
    path = str(tmp_path / "web.plan")
    planfile.write(path, [wish], c.PlanResponse())
    assert run(["apply", "--plan", path, "-n", "there"]) == 1
    assert 'deployment/web says namespace "here", but -n says "there"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [('"replicas": 3', '"replicas": 4'), ('"web:1"', '"evil:1"'), ('"here"', '"there"'), ('"n1"', '"n2"')],
)
def test_a_changed_plan_is_refused(plan: Path, old: str, new: str) -> None:
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new))
    with pytest.raises(CommandError, match="has been changed or cut off"):
        planfile.read(str(plan))


def test_a_plan_of_another_version_is_refused_before_its_digest(plan: Path) -> None:
    document = json.loads(plan.read_text())
    plan.write_text(json.dumps(document | {"format": 2}))
    with pytest.raises(CommandError, match="has plan format 2, this version of shoal reads 1"):
        planfile.read(str(plan))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no plan, or is cut off"),
        ("kind: Plan", "is no plan, or is cut off"),
        ("[" * 100_000, "is no plan, or is cut off"),
        ("[]", "is no plan"),
        ('{"kind": "Plan"}', "is no plan"),
    ],
)
def test_other_files_are_no_plans(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(CommandError, match=words):
        planfile.read(str(path))


def test_well_sealed_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def seal(**fields: object) -> str:
        document: dict[str, object] = {"apiVersion": "shoal.dev/v1", "kind": "Plan", "format": 1, **fields}
        path.write_text(json.dumps(document | {"digest": planfile.digest(document)}))
        return str(path)

    for fields, words in (
        ({"expected": {}}, "lacks 'objects'"),
        ({"expected": {}, "objects": [{"kind": "Banana"}]}, "holds a Banana"),
        ({"expected": {"pods": 3}, "objects": []}, "pods"),
        ({"expected": {}, "objects": [{"kind": "Pod", "spec": 5}]}, "Pod cannot be read"),
    ):
        with pytest.raises(CommandError, match=words):
            planfile.read(seal(**fields))
    with pytest.raises(CommandError, match="cannot read the plan"):
        planfile.read(str(tmp_path / "none"))
    with pytest.raises(CommandError, match="cannot write the plan"):
        planfile.write(str(tmp_path / "no" / "where"), [], c.PlanResponse())
