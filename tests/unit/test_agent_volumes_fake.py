"""The volumes in memory keep the contract."""

from __future__ import annotations

import pytest

from shoal.agent.volumes.fake import FakeVolumes
from tests.volumes_contract import VolumesContract


class TestFakeVolumes(VolumesContract):
    @pytest.fixture
    def volumes(self) -> FakeVolumes:
        return FakeVolumes()
