"""Replays one seed and prints what happens in it, step by step.

python -m tests.simulation SEED [--mistake NAME]
python -m tests.simulation --pins       prints seeds that find the planted mistakes
"""

from __future__ import annotations

import argparse
import sys
import traceback
from contextlib import nullcontext

from tests.simulation.installation import installed
from tests.simulation.mistakes import MISTAKES, finding_seed
from tests.simulation.storm import theme_of
from tests.simulation.world import world_of


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--mistake", choices=list(MISTAKES))
    parser.add_argument("--pins", action="store_true")
    asked = parser.parse_args()
    if asked.pins:
        for name, mistake in MISTAKES.items():
            print(f"{name}: {finding_seed(mistake, 1_000)}")
        return 0
    if asked.seed is None:
        parser.error("a seed is needed")
    print(f"seed {asked.seed}, theme {theme_of(asked.seed)}")
    installed()  # made without any mistake
    planted = MISTAKES[asked.mistake].plant() if asked.mistake else nullcontext()
    with planted, world_of(asked.seed, keeps_trace=True) as world:
        try:
            world.run()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            return 1
        finally:
            print("\n".join(world.lines))
    print(f"all is well; trace {world.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
