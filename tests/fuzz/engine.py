"""atheris over one target, or over all of them by the first byte.

    python -m tests.fuzz.engine TARGET [FILE... | DIRECTORY...] [-runs=N] [-seed=N] ...
    python -m tests.fuzz.engine everything -runs=20000

Options are libFuzzer's. What fails is written as `crash-...` into the working directory; the same
command with that file replays it.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]

_PACKAGES = ["holdfast_contract", "holdfast_agent", "holdfast_server", "holdfast_cli", "tests.fuzz"]
with atheris.instrument_imports(include=_PACKAGES):
    from tests.fuzz.targets import TARGETS

EVERYTHING = "everything"


def main() -> None:
    """Fuzz until the engine has enough."""
    name, *options = sys.argv[1:]
    chosen = list(TARGETS.values()) if name == EVERYTHING else [TARGETS[name]]

    def one(data: bytes) -> None:
        if len(chosen) == 1:
            chosen[0].run(data)
        elif data:
            chosen[data[0] % len(chosen)].run(data[1:])

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
