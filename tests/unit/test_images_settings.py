"""Where a registry's images come from, and what is done once for many."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.agent.images.caller import Caller
from shoal.agent.images.port import ImageFault
from shoal.agent.images.puller import near
from shoal.agent.images.sessions import Sessions
from shoal.agent.images.settings import Endpoint, Patience, Registry, endpoints, is_loopback
from shoal.agent.images.sharing import Shared, together


def test_where_images_come_from() -> None:
    assert endpoints({}, "docker.io") == [Endpoint("registry-1.docker.io", registry="docker.io")]
    assert endpoints({}, "localhost:5000")[0].schemes == ("https", "http")
    assert endpoints({}, "quay.io")[0].schemes == ("https",)
    table = {
        "quay.io": Registry(mirrors=("http://10.0.0.1:5000/quay/", "https://m.io")),
        "m.io": Registry(ca=Path("/ca")),
        "*": Registry(insecure=True),
    }
    assert endpoints(table, "quay.io") == [
        Endpoint("10.0.0.1:5000", "/quay", ("http",), True, None, "10.0.0.1:5000"),
        Endpoint("m.io", "", ("https",), True, Path("/ca"), "m.io"),
        Endpoint("quay.io", registry="quay.io"),
    ]
    [other] = endpoints(table, "else.io")
    assert other.schemes == ("https", "http") and not other.verify


@pytest.mark.parametrize(
    ("host", "wanted"),
    [("127.0.0.1:5000", True), ("127.9.9.9", True), ("[::1]:5000", True), ("localhost", True), ("localhost.io", False)],
)
def test_what_is_this_very_machine(host: str, wanted: bool) -> None:
    assert is_loopback(host) == wanted


async def test_https_never_leads_to_http() -> None:
    caller = Caller(Sessions(Patience()), Endpoint("a.io", registry="a.io"), "", ())
    assert caller.same_trust("https://a.io/v2/", "/v2/b") == "https://a.io/v2/b"
    with pytest.raises(ImageFault, match="leads from https to http"):
        caller.same_trust("https://a.io/v2/", "http://a.io/v2/")


def test_near_tags() -> None:
    assert near("1.2", ["1.25", "latest", "1.26"]).startswith("; it has the tags 1.2")
    assert near("x", []) == ""


async def test_shared_work_outlives_its_first_caller_and_not_its_last() -> None:
    shared: Shared[str, int] = Shared()
    started, ended = 0, 0
    release = asyncio.Event()

    async def work() -> int:
        nonlocal started, ended
        started += 1
        try:
            await release.wait()
        finally:
            ended += 1
        return started

    calls = [asyncio.create_task(shared.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    assert (started, ended) == (1, 0)
    release.set()
    assert await asyncio.gather(*calls[1:]) == [1, 1]
    release.clear()
    again = asyncio.create_task(shared.run("k", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    again.cancel()
    await asyncio.wait([again])
    assert again.cancelled() and (started, ended) == (2, 2)


async def test_anothers_failure_is_not_ours() -> None:
    shared: Shared[str, int] = Shared()

    async def fails() -> int:
        await asyncio.sleep(0)
        raise ImageFault("Unauthorized", "no")

    async def works() -> int:
        return 7

    first = asyncio.create_task(shared.run("k", fails))
    await asyncio.sleep(0)
    assert await shared.run("k", works) == 7
    with pytest.raises(ImageFault):
        await first


async def test_together_ends_all_with_the_first_failure() -> None:
    ended = asyncio.Event()

    async def fails() -> None:
        raise ImageFault("NotFound", "x")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ImageFault):
        await together([waits(), fails()])
    assert ended.is_set()
