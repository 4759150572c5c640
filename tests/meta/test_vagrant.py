"""The Vagrantfile is valid for both providers' settings, and the scripts and units beside it are well-formed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("deploy/**/*.sh"), *ROOT.glob("tests/**/*.sh"), ROOT / ".ci/run"])
UNITS = sorted(ROOT.glob("deploy/systemd/*.service"))
HARDENED = ("NoNewPrivileges=yes", "CapabilityBoundingSet=", "RestrictAddressFamilies=", "UMask=0077")


def validate(**settings: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is missing (Debian: apt-get install vagrant; `make test` does)")
    env = {**os.environ, **{f"SHOAL_{name}": value for name, value in settings.items()}}
    argv = ["vagrant", "validate", "--ignore-provider"]
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"PROVIDER": "virtualbox", "AGENTS": "5", "MEMORY": "2048", "BOX": "my/box"}, {"DRIVER": "qemu"}],
    ids=["default", "virtualbox", "qemu"],
)
def test_the_vagrantfile_is_valid(settings: dict[str, str]) -> None:
    done = validate(**settings)
    assert done.returncode == 0, done.stdout + done.stderr
    machines = set(re.findall(r"==> (\S+):", done.stdout + done.stderr))
    assert machines == {"master", *(f"node-{i}" for i in range(1, int(settings.get("AGENTS", "2")) + 1))}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("AGENTS", "none"), ("MEMORY", "64"), ("PROVIDER", "bhyve")])
def test_a_bad_setting_is_refused_by_name(name: str, value: str) -> None:
    done = validate(**{name: value})
    assert done.returncode != 0
    assert f"SHOAL_{name}={value}" in done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_scripts_parse_and_stop_at_errors(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert re.search(r"^set -[a-z]*u[a-z]* ?", path.read_text(), re.MULTILINE), "no `set -u`"
    assert os.access(path, os.X_OK), "not executable"


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units_start_what_exists_with_least_privilege(path: Path) -> None:
    text = path.read_text()
    for module in re.findall(r"python -m (\S+)", text):
        assert importlib.util.find_spec(module) is not None, f"{module} does not exist"
    if "spawner" not in path.name:  # the spawner makes namespaces and mounts for everybody
        for line in HARDENED:
            assert line in text, f"{line} is missing"
