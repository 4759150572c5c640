"""B17, B18, B45 to B52 and B68: what a container may do, asked from inside of it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.agent.runtime import syscalls
from tests.behaviours.world import World, container, pod
from tests.node.launching import elf64

STATUS = "cat /proc/self/status"
DEFAULT_CAPABILITIES = 0xA00405FB & ~(1 << 13) & ~(1 << 27)  # the usual ones without NET_RAW and MKNOD
NET_ADMIN, SYS_TIME, CHOWN = 1 << 12, 1 << 25, 1 << 0


def fields(text: str) -> dict[str, str]:
    """Of /proc/self/status."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def one(name: str, script: str, context: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    more: dict[str, Any] = {} if context is None else {"securityContext": context}
    return pod(name, container(script, **more), restartPolicy="Never", **spec)


def test_b17_a_read_only_root_takes_no_file(world: World) -> None:
    script = "touch /x 2>&1; echo x 2>&1 > /etc/hosts; echo y > /dev/shm/y && echo > /dev/termination-log && echo fine"
    out = world.output(one("ro", script, {"readOnlyRootFilesystem": True}))
    assert out.count("ead-only file system") >= 1
    assert out.endswith("fine\n")
    assert "/ overlay ro," in world.output(
        one("mounts", "awk '{print $2,$3,$4}' /proc/mounts", {"readOnlyRootFilesystem": True})
    )


def test_b18_a_writable_root_takes_files_and_forgets_them_with_the_run(world: World) -> None:
    script = "test ! -e /x && echo new > /x && cat /x"
    for name in ("first", "second"):
        assert world.output(one(name, script)) == "new\n"


def test_b45_the_container_runs_as_the_user_and_group_that_it_names(world: World) -> None:
    assert world.output(one("pods", "id -u; id -g", securityContext={"runAsUser": 1234, "runAsGroup": 2345})) == (
        "1234\n2345\n"
    )
    own = one("own", "id -u; id -g", {"runAsUser": 77}, securityContext={"runAsUser": 1234, "runAsGroup": 2345})
    assert world.output(own) == "77\n2345\n"
    assert world.output(one("name", "id -un; echo $HOME", {"runAsUser": 1000})) == "app\n/home/app\n"


def test_b46_supplemental_groups_and_fs_group_are_the_process_s(world: World) -> None:
    context = {"runAsUser": 1000, "supplementalGroups": [3000, 4000], "fsGroup": 5000}
    assert set(world.output(one("groups", "id -G", securityContext=context)).split()) == {
        "1000",
        "2000",  # of the image's /etc/group
        "3000",
        "4000",
        "5000",
    }


def test_b46_a_volume_belongs_to_the_fs_group(world: World) -> None:
    script = "echo x > /v/file; stat -c %g /v /v/file; test -g /v && echo setgid"
    manifest = pod(
        "volume",
        container(script, volumeMounts=[{"name": "v", "mountPath": "/v"}]),
        securityContext={"runAsUser": 1000, "fsGroup": 5000},
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    assert world.output(manifest) == "5000\n5000\nsetgid\n"


def test_b47_a_container_is_unprivileged_unless_told_otherwise(world: World) -> None:
    script = f"{STATUS}; ls /dev; mount -t tmpfs none /tmp; hostname evil; echo x > /proc/sys/kernel/domainname; true"
    out = world.output(one("plain", f"({script}) 2>&1"))
    seen = fields(out)
    assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == DEFAULT_CAPABILITIES
    assert "permission denied" in out or "not permitted" in out
    assert "ead-only file system" in out
    assert not {"kmsg", "mem", "vda", "sda", "loop-control"} & set(out.split())


def test_b47_a_privileged_container_may_do_all_that_its_node_can(world: World) -> None:
    world.label(pod_security="privileged")
    script = f"{STATUS}; ls /dev; mkdir /m && mount -t tmpfs none /m && echo mounted; touch /sys/fs/cgroup && echo rw"
    out = world.output(one("all", script, {"privileged": True}))
    seen = fields(out)
    assert int(seen["CapEff"], 16) & (NET_ADMIN | 1 << 21) == NET_ADMIN | 1 << 21
    assert seen["Seccomp"].strip() == "0"
    assert "mounted" in out.split()


def test_b48_no_new_privileges(world: World) -> None:
    """A set-user-id program gains nothing when escalation is not allowed. Its exit code is its effective user."""
    if syscalls.MACHINE != "x86_64":
        pytest.skip("the program is for x86_64")
    program = elf64(b"\xb8\x6b\x00\x00\x00\x0f\x05\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05")  # exit(geteuid())
    octal = "".join(f"\\{byte:03o}" for byte in program)
    script = f"printf '{octal}' > /tmp/who && chmod 4755 /tmp/who && grep NoNewPrivs /proc/self/status; "
    script += "su app -c /tmp/who; echo $?"
    out = world.output(one("off", script, {"allowPrivilegeEscalation": False}))
    assert out.split() == ["NoNewPrivs:", "1", str(1000 % 256)]
    assert world.output(one("on", script)).split() == ["NoNewPrivs:", "0", "0"]


def test_b49_allowed_sysctls_are_the_pod_s_own(world: World) -> None:
    context = {"sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "20000 30000"}]}
    script = "cat /proc/sys/net/ipv4/ip_local_port_range"
    assert world.output(one("own", script, securityContext=context)).split() == ["20000", "30000"]
    assert world.output(one("other", script)).split() != ["20000", "30000"]


def test_b50_run_as_non_root_refuses_an_image_that_runs_as_root(world: World) -> None:
    world.apply(one("root", "echo ran", {"runAsNonRoot": True}))
    message = world.waiting("root", "CreateContainerConfigError")
    assert "runAsNonRoot" in message
    assert "runAsUser" in message
    assert world.output(one("user", "id -u", {"runAsNonRoot": True, "runAsUser": 1000})) == "1000\n"


def test_b51_capabilities_are_added_and_dropped(world: World) -> None:
    world.label(pod_security="privileged")
    sets = {
        "add": ({"add": ["NET_ADMIN"]}, DEFAULT_CAPABILITIES | NET_ADMIN),
        "drop": ({"drop": ["CHOWN"]}, DEFAULT_CAPABILITIES & ~CHOWN),
        "only": ({"drop": ["ALL"], "add": ["NET_ADMIN"]}, NET_ADMIN),
        "none": ({"drop": ["ALL"]}, 0),
    }
    for name, (capabilities, expected) in sets.items():
        seen = fields(world.output(one(name, STATUS, {"capabilities": capabilities})))
        assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == expected, name
    link = one("link", "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu", {"capabilities": {"add": ["NET_ADMIN"]}})
    assert world.output(link) == "1400\n"


def test_b52_the_default_profile_filters_system_calls_unless_told_otherwise(world: World) -> None:
    world.label(pod_security="privileged")
    script = f"{STATUS}; unshare -U true 2>&1 && echo made"
    out = world.output(one("default", script + "; true"))
    assert fields(out)["Seccomp"].strip() == "2"
    assert "not permitted" in out
    out = world.output(one("free", script, {"seccompProfile": {"type": "Unconfined"}}))
    assert fields(out)["Seccomp"].strip() == "0"
    assert "made" in out


def test_b52_a_missing_local_profile_is_named(world: World) -> None:
    world.apply(one("local", "true", {"seccompProfile": {"type": "Localhost", "localhostProfile": "none/such.json"}}))
    assert "none/such.json" in world.waiting("local", "CreateContainerConfigError")


def test_b68_mounts_are_in_place_before_the_process(world: World) -> None:
    """The command itself lies on a volume: had it started first there would have been no such command."""
    mounts = [
        {"name": "v", "mountPath": "/v"},
        {"name": "v", "mountPath": "/only", "subPath": "deep", "readOnly": True},
    ]
    writer = container("cp /bin/busybox /v/cat && mkdir /v/deep && echo there > /v/deep/file", "writer")
    writer["volumeMounts"] = mounts[:1]
    app = container(["/v/cat", "/only/file"], volumeMounts=mounts)
    manifest = pod("early", app, initContainers=[writer], volumes=[{"name": "v", "emptyDir": {}}])
    assert world.output(manifest) == "there\n"
