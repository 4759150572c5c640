"""What every adapter of the volumes' port must do; run on the one in memory and on the one on disk."""

from __future__ import annotations

from shoal.agent.volumes.port import EmptyDir, File, Files, Local, Prepared, Volumes, VolumeSpec

POD = "0d6e4c5e-aaaa"


def files(secret: bool = False, /, **contents: str) -> Files:
    return Files({name: File(text.encode()) for name, text in contents.items()}, secret)


class VolumesContract:
    """Subclasses give the fixture `volumes`."""

    async def test_each_volume_has_a_place_of_its_own_and_keeps_it(self, volumes: Volumes) -> None:
        specs = [
            VolumeSpec("disk", EmptyDir()),
            VolumeSpec("fast", EmptyDir(memory=True, size_bytes=1 << 20)),
            VolumeSpec("conf", files(a="1")),
            VolumeSpec("keys", files(True, a="1")),
            VolumeSpec("data", Local("pv1")),
        ]
        first = await volumes.prepare(POD, specs)
        assert list(first) == [spec.name for spec in specs]
        assert all(isinstance(one, Prepared) and one.path.startswith("/") for one in first.values())
        assert len({one.path for one in first.values()}) == len(specs)
        assert await volumes.prepare(POD, specs) == first
        await volumes.free(POD)

    async def test_pods_are_told_until_they_are_freed(self, volumes: Volumes) -> None:
        await volumes.prepare(POD, [VolumeSpec("disk", EmptyDir())])
        await volumes.prepare("other", [VolumeSpec("keys", files(True, a="1"))])
        assert sorted(await volumes.held()) == [POD, "other"]
        await volumes.free(POD)
        await volumes.free(POD)
        assert list(await volumes.held()) == ["other"]
        await volumes.free("other")
        assert list(await volumes.held()) == []

    async def test_usage_counts_folders_on_disk(self, volumes: Volumes) -> None:
        await volumes.prepare(POD, [VolumeSpec("disk", EmptyDir()), VolumeSpec("conf", files(a="1"))])
        assert set(await volumes.usage(POD)) == {"disk"}
        await volumes.free(POD)
        assert await volumes.usage(POD) == {}

    async def test_what_is_not_there_can_be_freed_updated_and_removed(self, volumes: Volumes) -> None:
        await volumes.free("nobody")
        await volumes.update("nobody", [VolumeSpec("conf", files(a="1"))])
        await volumes.remove_local("nothing")
        assert await volumes.measure(["/nothing/there"]) == 0
        assert list(await volumes.held()) == []
