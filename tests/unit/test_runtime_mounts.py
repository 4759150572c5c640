"""The plan of a container's mounts, as data."""

from __future__ import annotations

from shoal.agent.runtime import mounts, syscalls

PAGE = 4096  # mount(2) takes one page of options


def plan(**fields: object) -> list[mounts.Step]:
    made = mounts.Plan(work="/w", layers=3, cwd="/srv")
    made.files = [("files/0", "/etc/hosts")]
    made.cgroup_views = [("memory", "/sys/fs/cgroup/memory/p"), ("unified", "/sys/fs/cgroup/unified/p")]
    for name, value in fields.items():
        setattr(made, name, value)
    return made.steps()


def test_the_topmost_layer_comes_first() -> None:
    assert mounts.Overlay("/w", 3).options().startswith(b"lowerdir=l/2:l/1:l/0,upperdir=upper,workdir=work,volatile")


def test_options_of_the_most_layers_fit_a_page() -> None:
    assert len(mounts.Overlay("/w", mounts.MAX_LAYERS).options()) < PAGE


def test_steps_describe_themselves() -> None:
    texts = [step.describe() for step in plan()]
    assert len(set(texts)) == len(texts)
    assert all(texts)
    assert "mount the image's 3 layers on /w" in texts
    assert "bind the managed file /etc/hosts" in texts
    assert "cover /proc/kcore" in texts
    assert "make /proc/sys read-only" in texts


def test_order() -> None:
    """Private first, the root before what lies in it, files before the working folder, read-only last."""
    steps = plan(read_only_root=True)
    kinds = [type(step) for step in steps]
    assert kinds[:2] == [mounts.Detach, mounts.Overlay]
    assert kinds[-2:] == [mounts.WorkingFolder, mounts.Freeze]
    names = [step.name for step in steps if isinstance(step, mounts.Fresh)]
    assert names.index("proc") < names.index("dev") < names.index("pts")
    assert max(i for i, kind in enumerate(kinds) if kind is mounts.Fresh) < kinds.index(mounts.Cover)
    assert mounts.Enter not in kinds


def test_cgroups_of_either_kind() -> None:
    split = [step for step in plan() if isinstance(step, mounts.Fresh) and step.fstype == b"tmpfs"]
    assert b"sys/fs/cgroup" in [step.path for step in split]
    whole = plan(cgroup_views=[("", "/sys/fs/cgroup/p")])
    assert b"sys/fs/cgroup" not in [step.path for step in whole if isinstance(step, mounts.Fresh)]
    assert [step.folder for step in whole if isinstance(step, mounts.CgroupView)] == [b"/sys/fs/cgroup/p"]


def test_managed_files_are_read_only_with_the_root() -> None:
    for read_only in (False, True):
        [file] = [step for step in plan(read_only_root=read_only) if isinstance(step, mounts.File)]
        assert bool(file.attributes & syscalls.MOUNT_ATTR_RDONLY) is read_only
        assert file.attributes & mounts.LOCKED == mounts.LOCKED
