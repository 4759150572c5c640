"""`python -m tests.sim --seed N` replays one run and tells what happens; `--seeds A B` runs a range of them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback

from tests.sim.scenario import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, telling every step")
    parser.add_argument(
        "--seeds", type=int, nargs=2, metavar=("FIRST", "LAST"), help="run these, telling failures only"
    )
    parser.add_argument("--logs", action="store_true", help="the programs' own logs too")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    logging.basicConfig(
        level=logging.INFO if options.logs else logging.CRITICAL, format="          %(name)s: %(message)s"
    )
    first, last = options.seeds or (options.seed, options.seed)
    if first is None:
        parser.error("say --seed N or --seeds FIRST LAST")
    failed = []
    began = time.monotonic()
    for seed in range(first, last + 1):
        try:
            play(seed, verbose=options.seed is not None)
        except Exception:
            failed.append(seed)
            print(f"seed {seed} failed; replay it with: python -m tests.sim --seed {seed}")
            traceback.print_exc(limit=-3)
    print(f"{last - first + 1 - len(failed)} passed, {len(failed)} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
