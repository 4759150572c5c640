"""The wheel holds everything and imports in a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheel_imports_in_a_clean_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("git", "clone", "-q", ROOT, source, cwd=tmp_path)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path / "dist", cwd=source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*ROOT.glob("proto/**/*.py"), *ROOT.glob("master/**/*.py"), *ROOT.glob("agent/**/*.py")]:
        assert f"shoal/{path.relative_to(ROOT)}" in names
    assert not any(name.startswith(("tests/", "bench/")) for name in names)
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=tmp_path)
    out = run(
        python,
        "-c",
        "import shoal, shoal.proto, shoal.master.model, shoal.agent.runtime.port, shoal.deploy; print(shoal.__file__)",
        cwd=tmp_path,
    )
    assert str(tmp_path) in out
    assert "shoal" in run(tmp_path / "venv/bin/shoal", "--version", cwd=tmp_path)
