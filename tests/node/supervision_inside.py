"""Run inside namespaces of its own by test_supervision_node.py: a pod's whole life, as JSON on stdout."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.node.supervision_world import World, ended, until


async def life(folder: Path) -> dict[str, object]:
    world = World(folder)
    try:
        async with world.client() as client:
            pod = world.pod()
            await client.ensure_sandbox(world.sandbox(pod))
            state = await client.start(
                world.spec(pod, "echo $$; hostname; trap 'exit 7' TERM; while true; do usleep 10000; done")
            )
            await until(lambda: len(world.lines(pod)) == 2, "two lines")
            own = os.readlink("/proc/self/ns/pid") != os.readlink(f"/proc/{state.pid}/ns/pid")
            supervisor = world.supervisor_pid(pod)
            os.kill(supervisor, 9)
            await until(lambda: world.supervisor_pid(pod) not in (0, supervisor), "a new supervisor")
            await client.signal(state.id, 15)
            exit = (await ended(client, state.id)).exit
            await client.remove_sandbox(pod)
            return {
                "lines": world.lines(pod),
                "code": exit and exit.code,
                "own": own,
                "listed": len(await client.list()),
            }
    finally:
        await world.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(life(Path(sys.argv[1])))))
