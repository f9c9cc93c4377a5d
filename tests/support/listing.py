"""A whole directory as stat parts: what the walk takes part by part."""

from __future__ import annotations

import io

from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.names import Names
from holdfast_agent.sources.scan import Listing, stats_of


def scan(directory: Directory) -> Listing:
    """Return every entry, sorted by name, and what could not be looked at."""
    names = Names(directory, io.BytesIO)
    taken: list[bytes] = []
    while names.has():
        taken += names.take(None, 5000)
    found = stats_of(directory, taken)
    names.close()
    return found._replace(findings=names.findings + found.findings)
