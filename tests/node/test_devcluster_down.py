"""`down` never says that nothing is there while something runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shoal.deploy.devcluster.lifecycle import take_down
from shoal.deploy.devcluster.plan import RUN_ROOT, Refusal
from shoal.deploy.devcluster.processes import Register, identify


def test_a_cluster_with_its_data_elsewhere_is_not_overlooked(tmp_path: Path) -> None:
    name = f"t{os.getpid()}"
    me = identify(os.getpid())
    assert me is not None
    assert not take_down(name, tmp_path / "data", keep_data=False)
    try:
        Register(RUN_ROOT / name / "processes").put("etcd", me)
        with pytest.raises(Refusal, match="say --data FOLDER"):
            take_down(name, tmp_path / "data", keep_data=False)
    finally:
        shutil.rmtree(RUN_ROOT / name)
        if not os.listdir(RUN_ROOT):
            RUN_ROOT.rmdir()
