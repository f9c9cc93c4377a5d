"""Connections of `http.client` that send the head and a small body of a request in one piece.

A module of its own, imported with the first request: `http.client` and the mail parser behind it
are a megabyte of an agent that idles.
"""

from __future__ import annotations

import http.client
from typing import Any


class Gathering(http.client.HTTPConnection):
    """A connection; `http.client` alone makes two packets of head and body."""

    gathered: bytearray | None = None

    def send(self, data: Any) -> None:
        """Send `data`, or keep it for `flush`."""
        if self.gathered is None:
            super().send(data)
        else:
            self.gathered += data

    def flush(self) -> None:
        """Send what was kept."""
        gathered, self.gathered = self.gathered, None
        if gathered:
            super().send(gathered)


class SecureGathering(Gathering, http.client.HTTPSConnection):
    """The same over TLS."""
