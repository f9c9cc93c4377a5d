"""`REF:/path`: what a person types to name a part of a snapshot."""

from __future__ import annotations

import os
from dataclasses import dataclass

from holdfast_cli.api import Api
from holdfast_contract.protocol.control import RestoreItem
from holdfast_contract.protocol.http import SnapshotPath, SnapshotRow


@dataclass(frozen=True)
class Part:
    """A snapshot and a path in it."""

    snapshot: SnapshotRow
    path: bytes = b"/"
    """Absolute; b"/" for all of it."""

    def request(self) -> SnapshotPath:
        """Return the part for a request to the server."""
        try:
            return SnapshotPath(snapshot=self.snapshot.id, path=self.path.decode())
        except UnicodeDecodeError:
            return SnapshotPath(snapshot=self.snapshot.id, path_b64=self.path)

    def item(self) -> RestoreItem:
        """Return the part for work that is done here."""
        return RestoreItem(bytes.fromhex(self.snapshot.id), self.snapshot.client, self.path)


def split_reference(text: str) -> tuple[str, bytes]:
    """Return the reference and the path; the path begins at the first `:/`."""
    reference, colon, path = text.partition(":/")
    return reference, b"/" + os.fsencode(path).strip(b"/") if colon else b"/"


def resolve(api: Api, text: str) -> Part:
    """Return what `text` names.

    Raises:
        NotFound, Ambiguous: no snapshot, or several.
    """
    reference, path = split_reference(text)
    return Part(api.snapshot(reference), path)
