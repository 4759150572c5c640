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


@pytest.mark.parametrize("name", ["agent", "spawner"])
def test_agent_and_spawner_see_one_tree_of_mounts(name: str) -> None:
    """systemd.exec(5): these give a unit a mount namespace of its own; what one mounts, the other would not see."""
    text = (ROOT / f"deploy/systemd/shoal-{name}.service").read_text()
    own = r"^(?:Protect|Private|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|Bind|TemporaryFileSystem|MountFlags).*$"
    assert re.findall(own, text, re.MULTILINE) == []


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units_never_give_up(path: Path) -> None:
    """Restart=always alone ends for ever after five starts in ten seconds (systemd.unit(5), StartLimitIntervalSec=)."""
    sections = path.read_text().split("[Service]")
    assert "StartLimitIntervalSec=0" in sections[0].splitlines() and "Restart=always" in sections[1].splitlines()


def test_the_spawners_unit_keeps_its_pods_apart_from_itself() -> None:
    """Its mounts must show on the host, its filters would be the containers', and a delegated subtree that hands
    controllers down takes no second spawner (systemd.exec(5), systemd.resource-control(5))."""
    lines = (ROOT / "deploy/systemd/shoal-spawner.service").read_text().splitlines()
    settings = {line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#")}
    private = re.compile(
        "Protect|Private|ReadOnly|ReadWrite|Inaccessible|Temporary|Bind|Root|Mount|Device|System|Restrict[^a]"
    )
    assert [name for name in settings if private.match(name)] == []
    assert "NoNewPrivileges" not in settings and "Delegate" not in settings
    assert "KillMode=process" in lines and "RuntimeDirectoryPreserve=yes" in lines
    assert re.search(r"^cgroup: shoal$", (ROOT / "deploy/vagrant/agent.sh").read_text(), re.MULTILINE)


def test_the_agents_unit_may_unpack_devices() -> None:
    """These settings come with a device filter, under which an image's device nodes cannot be made."""
    text = (ROOT / "deploy/systemd/shoal-agent.service").read_text()
    assert not re.search("^(ProtectClock|PrivateDevices|Device)", text, re.MULTILINE) and "CAP_MKNOD" in text
