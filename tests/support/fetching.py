"""What a grant gives, with the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast_server.repository.reading import FetchStatus, Grant


class Fetched(NamedTuple):
    """One answer with the sealed chunk, empty unless it is here."""

    chunk_id: bytes
    status: FetchStatus
    object: str
    offset: int
    data: bytes


def fetched(grant: Grant, ids: Sequence[bytes]) -> list[Fetched]:
    """Return the answers for `ids`, all read in one go."""
    places = grant.places(ids)
    rooms = [memoryview(bytearray(place.length)) for place in places]
    grant.read(places, rooms)
    return [Fetched(*place[:4], bytes(room)) for place, room in zip(places, rooms, strict=True)]
