"""Becomes the node's spawner: `python -m shoal.agent.spawn --config agent.yaml`, for a unit of its own.

Where no unit starts it, the agent does (`spawner: own`, the default).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shoal.agent.config import Config, ConfigError, load
from shoal.agent.runtime.settings import Settings, SettingsError

BOOT = Path(__file__).resolve().parent / "runtime" / "boot.py"
USAGE = "usage: python -m shoal.agent.spawn --config agent.yaml"
EXIT_FAILED, EXIT_USAGE = 1, 2


def settings_of(config: Config) -> Settings:
    """Where the node's runtime lies. Raises SettingsError."""
    return Settings(str(config.run), str(config.data / "runtime"), config.cgroup, config.boot_id).checked()


def prepare(settings: Settings) -> list[str]:
    """Writes the spawner's settings; its command line. Raises OSError."""
    settings.make_folders()
    path = Path(settings.run) / "spawner.json"
    new = path.with_suffix(".new")
    new.write_text(settings.to_json())
    new.replace(path)
    return [sys.executable, "-S", "-E", "-I", str(BOOT), "spawner", "--config", str(path)]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 2 or words[0] != "--config":
        print(USAGE, file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    try:
        command = prepare(settings_of(load(Path(words[1]), {})))
        os.execv(command[0], command)
    except ConfigError as fault:
        print(fault, file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    except (SettingsError, OSError) as fault:
        print(f"the spawner cannot be started: {fault}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
