"""What the server shows as the client's history, against what the agent remembers of it.

The memory moves forward only along `prev` links whose manifests are verified: MAC against the
server, signature against siblings.
"""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.crypto.records import SignedManifest, open_signed_manifest
from holdfast_agent.ports import Cancel, ChunkSource
from holdfast_contract.errors import Damaged, HistoryRegressed, HoldfastError
from holdfast_contract.format.manifest import decode_manifest_body, split_manifest
from holdfast_contract.ids import ZERO_HASH

_HINT = "if the server was restored on purpose: `holdfast client accept`"


class Head(NamedTuple):
    """A snapshot of the client's history; (0, zero bytes) is before the first."""

    seq: int
    snapshot: bytes


def check_history(
    shown: Head,
    remembered: Head,
    *,
    client: str,
    keys: DomainKeys,
    chunks: ChunkSource,
    cancel: Cancel,
) -> None:
    """Return if `shown`, the server's head, is `remembered` or follows from it.

    Without a memory (a new state directory) the head alone is verified.

    Raises:
        HistoryRegressed: it is older, or another history.
        WrongKey: the head is not of the domain of these keys.
        Damaged: a manifest or an identity record on the way is.
    """
    if shown.seq < remembered.seq:
        raise HistoryRegressed(
            f"the server's newest snapshot of this client is number {shown.seq}, "
            f"but number {remembered.seq} was committed before",
            hint=_HINT,
            shown=shown.seq,
            remembered=remembered.seq,
        )
    seq, snapshot = shown
    while seq > remembered.seq:
        cancel.check()
        body = read_manifest(snapshot, keys=keys, chunks=chunks).body
        if (body.client, body.seq) != (client, seq):
            raise _another(seq)
        if remembered.seq == 0:
            return
        seq, snapshot = seq - 1, body.prev
    if snapshot != remembered.snapshot:
        raise _another(seq)


def read_manifest(snapshot: bytes, *, keys: DomainKeys, chunks: ChunkSource) -> SignedManifest:
    """Return the verified manifest of a snapshot, and who signed it.

    Raises:
        WrongKey, Damaged: as `open_signed_manifest`; Damaged too when it is not this snapshot's.
    """
    data = chunks.manifest(snapshot)
    name = snapshot.hex()
    if blake3(data).digest() != snapshot:
        raise Damaged(f"manifest {name}: not the snapshot's", object=name, reason="id")
    try:
        signer = decode_manifest_body(split_manifest(data).body).identity
    except HoldfastError as exc:
        raise Damaged(f"manifest {name}: {exc.message}", object=name, reason="layout") from exc
    return open_signed_manifest(data, chunks.identity(signer), keys)


def _another(seq: int) -> HistoryRegressed:
    return HistoryRegressed(
        f"the server shows another history of this client: its snapshot number {seq} is not the "
        "one that was committed",
        hint=_HINT,
        shown=seq,
    )


NO_HEAD = Head(0, ZERO_HASH)
