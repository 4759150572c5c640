"""Starts one of the runtime's programs by file path: `python -S -E -I .../agent/runtime/boot.py spawner ARGS...`.

Isolated mode (-I) puts neither this folder nor site-packages on sys.path. So this file makes three empty packages, of
which only `shoal.agent.runtime` has a folder (this one). Inside it every module is imported by its one full name, here,
in the agent and in tests alike, and nothing outside of this folder and the standard library can be imported.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

PACKAGES = ("shoal", "shoal.agent", "shoal.agent.runtime")


def make_packages(folder: str) -> None:
    """Registers the packages; the innermost one is searched in `folder`."""
    for name in PACKAGES:
        package = ModuleType(name)
        package.__path__ = [folder] if name == PACKAGES[-1] else []
        sys.modules[name] = package


def main() -> int:
    """Runs `main()` of the module that argv[1] names; it finds its own arguments in sys.argv[1:]."""
    if len(sys.argv) < 2 or not sys.argv[1].isidentifier():
        sys.stderr.write("usage: python -S -E -I boot.py MODULE [ARGUMENT...], for example boot.py spawner\n")
        return 2
    make_packages(str(Path(__file__).resolve().parent))
    module = import_module(f"{PACKAGES[-1]}.{sys.argv[1]}")
    sys.argv = sys.argv[1:]
    return int(module.main())


if __name__ == "__main__":
    sys.exit(main())
