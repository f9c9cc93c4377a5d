"""Print the third-party requirements of the named distributions, one a line, for uv to lock.

The distributions of this repository are followed, never printed: a name of ours is not to be
looked up in any index.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

FOLDERS = {
    "holdfast-contract": "contract",
    "holdfast-agent": "agent",
    "holdfast-server": "server",
    "holdfast": "cli",
}


def third_party(name: str, top: Path) -> set[str]:
    """Return the requirement lines that `name` and the distributions of ours below it state."""
    project = tomllib.loads((top / FOLDERS[name] / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    for line in project["dependencies"]:
        other = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        found |= third_party(other, top) if other in FOLDERS else {line}
    return found


def main(names: list[str]) -> None:
    """Write the union for all `names`, sorted."""
    top = Path(__file__).resolve().parent.parent
    sys.stdout.write(
        "".join(f"{line}\n" for line in sorted(set().union(*(third_party(n, top) for n in names))))
    )


if __name__ == "__main__":
    main(sys.argv[1:])
