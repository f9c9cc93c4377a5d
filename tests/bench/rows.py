"""What `make bench` measured, row by row: ours, the best peer, the machine's limit, the quotients.

    python tests/bench/rows.py RESULTS.jsonl

P is ours by the best peer, L ours by the machine's limit; CPU (client and server, user and system)
before wall. Wall has the `sync` behind it in it: we flush what is stored and what is restored, and
not every peer does.
Peers that have a server and TLS as we have stand apart from those that write a local repository.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

OURS: Final = "holdfast"
MACHINE: Final = "machine"


class Row(NamedTuple):
    """A line of the table of targets."""

    number: int
    work: str
    data: str
    steps: tuple[str, ...]
    limit: str = ""
    """The machine's own step of the same data set."""


ROWS: Final = (
    Row(1, "first backup, large files", "D1", ("first",), "cat|zstd"),
    Row(2, "first backup, 100,000 small files", "D2", ("first",), "tar|zstd"),
    Row(3, "unchanged, 100,000 files", "D2", ("unchanged",), "find"),
    Row(4, "unchanged, 1,000,000 files", "D3", ("unchanged",), "find"),
    Row(5, "1 % of the small files changed", "D2", ("changed",)),
    Row(6, "1 % of the large files changed", "D1", ("changed",)),
    Row(7, "one byte of a large file", "D4", ("changed",), "cat"),
    Row(8, "each further replica", "D5", tuple(f"pod-{number}" for number in range(1, 10))),
    Row(9, "restore, large files", "D1", ("restore",), "cp -a"),
    Row(10, "restore, 100,000 files", "D2", ("restore",), "cp -a"),
    Row(11, "restore one small file", "D2", ("restore-one",)),
    Row(11, "list 100,000 files", "D2", ("list",)),
)


class Cost(NamedTuple):
    """Medians of a contender's rounds."""

    name: str
    cpu: float
    wall: float
    wire_bytes: float


def costs_of(row: Row, results: Iterable[dict[str, Any]]) -> list[Cost]:
    """Return what each contender took, by CPU; disturbed and failed rounds do not count."""
    steps = {*row.steps, row.limit}
    rounds: dict[str, list[Cost]] = {}
    for one in results:
        if one["set"] != row.data or one["step"] not in steps or one["rejected"] or one["rc"]:
            continue
        if (one["contender"] == MACHINE) != (one["step"] == row.limit):
            continue
        cpu, wall = one["client_cpu"] + one["server_cpu"], one["wall"] + one["sync"]
        rounds.setdefault(one["contender"], []).append(Cost("", cpu, wall, one["lo_bytes"]))
    medians = [
        Cost(
            name, *(statistics.median(values) for values in zip(*(r[1:] for r in got), strict=True))
        )
        for name, got in rounds.items()
    ]
    return sorted(medians, key=lambda cost: cost.cpu)


def quotients(ours: Cost, other: Cost | None) -> str:
    """Return ours by the other's, CPU and wall; nothing where there is none."""
    if other is None:
        return "|"
    name = "" if other.name == MACHINE else f"{other.name.partition(':')[0]} "
    return (
        f"{name}{other.cpu:.2f} / {other.wall:.2f} | "
        f"{ours.cpu / other.cpu:.2f} / {ours.wall / other.wall:.2f}"
    )


def line_of(row: Row, costs: list[Cost]) -> str:
    """Return one row of the table, as Markdown."""
    ours = next((cost for cost in costs if cost.name == OURS), None)
    if ours is None:
        return f"| {row.number} | {row.work} | not measured | | | | | | | |"
    of_tls = next((cost for cost in costs if cost.name.endswith(":tls")), None)
    of_local = next((cost for cost in costs if cost.name.endswith(":local")), None)
    limit = next((cost for cost in costs if cost.name == MACHINE), None)
    cells = [quotients(ours, other) for other in (of_tls, of_local, limit)]
    mine = f"{ours.cpu:.2f} / {ours.wall:.2f} | {ours.wire_bytes / 1e6:.2f}"
    return f"| {row.number} | {row.work} | {mine} | {' | '.join(cells)} |"


def main(paths: list[str]) -> None:
    """Print the table."""
    results = [
        json.loads(line) for path in paths for line in Path(path).read_text().splitlines() if line
    ]
    print(
        "| row | work | ours: CPU / wall s | wire MB "
        "| best TLS peer | P | best local peer | P | limit | L |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        print(line_of(row, costs_of(row, results)))


if __name__ == "__main__":
    main(sys.argv[1:])
