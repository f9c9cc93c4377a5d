"""What a hostile server does to one agent: each lie, the job that meets it, and its end."""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zstandard
from aiohttp import web

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial
from holdfast_agent.crypto.records import seal_identity, sign_manifest
from holdfast_agent.crypto.sealing import Opener, Sealer
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_contract.errors import Conflict
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import domain_mac_input, encode_domain, encode_domain_body
from holdfast_contract.format.identity import identity_hash
from holdfast_contract.format.manifest import snapshot_id
from holdfast_contract.ids import ChunkId, new_ulid
from holdfast_contract.limits import MIB
from holdfast_contract.protocol import control
from tests.support.fake_server import CLIENT, FakeServer, chunk_record
from tests.support.lying_sealer import seal_saying
from tests.support.restore_bench import RestoreBench
from tests.support.samples import (
    IDENTITY,
    IDENTITY_RECORD,
    KEYS,
    SIBLING,
    domain_body,
    identity_body,
    noise,
)

INVENTED_KEYS = DomainKeys(
    KeyMaterial(KEYS.domain_id, noise("invented"), ((1, noise("e1")), (2, noise("e2"))))
)
"""Of the same domain's id: what a server could make up."""
CONTENT = b"the one content that may be restored" * 20


@dataclass
class Stage:
    """What an attack works with."""

    server: FakeServer
    bench: RestoreBench
    order: dict[str, Any] = field(default_factory=dict)
    """What the order says otherwise."""

    @property
    def head(self) -> bytes:
        return self.bench.repository.head(CLIENT)[1]

    def says(self, route: str, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """Answer a route so from now on."""

        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=body, headers=headers)

        self.server.lies[route] = answer

    def tells(self, route: str, row: Any, status: int = 200) -> None:
        self.says(route, msgspec.json.encode(row), status)

    def chunks(self, change: Callable[[FetchedChunk], FetchedChunk | bytes]) -> None:
        """Change every chunk on its way."""

        async def answer(request: web.Request) -> web.StreamResponse:
            asked = await request.read()
            ids = [asked[at : at + 32] for at in range(0, len(asked), 32)]
            changed = map(change, self.bench.repository.chunks().fetch(ids))
            return web.Response(
                body=b"".join(
                    chunk if isinstance(chunk, bytes) else chunk_record(chunk) for chunk in changed
                )
            )

        self.server.lies["chunks"] = answer

    def streams(self, route: str, pieces: Callable[[], Any], *, length: int | None = None) -> None:
        """Answer with a body that goes on as long as somebody reads."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            if length is not None:
                response.content_length = length
            await response.prepare(request)
            try:
                for piece in pieces():
                    await response.write(piece)
            except (ConnectionError, OSError):
                pass
            return response

        self.server.lies[route] = answer

    def stands(self, manifest: bytes, identity: bytes = IDENTITY_RECORD) -> bytes:
        """Have the server hold any manifest; return its snapshot id."""
        self.bench.repository.add_identity(identity)
        standing = self.bench.repository.snapshots[self.head]
        snapshot = snapshot_id(manifest)
        self.bench.repository.snapshots[snapshot] = dataclasses.replace(standing, manifest=manifest)
        return snapshot

    def body(self, **changes: Any) -> Any:
        return msgspec.structs.replace(self.bench.repository.snapshots[self.head].body, **changes)


def forever() -> Any:
    while True:
        yield bytes(1 << 16)


def domain_with(**changes: Any) -> bytes:
    """Return a domain record with the domain's own MAC, whatever it says."""
    data = msgspec.msgpack.encode(
        msgspec.to_builtins(domain_body(), builtin_types=(bytes,)) | changes
    )
    return encode_domain(data, hmac.digest(KEYS.manifest, domain_mac_input(data), "sha256"))


SIBLING_RECORD = seal_identity(
    identity_body(client="shop/db-1", sign_key=SIBLING.sign_public, box_key=SIBLING.box_public),
    KEYS,
)
SERVERS_KEY = IdentityKey(noise("server sign"), noise("server box"))
SERVERS_RECORD = seal_identity(identity_body(sign_key=SERVERS_KEY.sign_public), KEYS)[:-32] + bytes(
    32
)
"""The server can make keys and a record, but not its MAC."""


# --- what the server does -------------------------------------------------------------------------
def another_manifest(stage: Stage) -> None:
    body = stage.body(client="shop/db-1", identity=identity_hash(SIBLING_RECORD))
    stage.bench.repository.add_identity(SIBLING_RECORD)
    stage.says("manifest", sign_manifest(body, KEYS, SIBLING))


def siblings_parent(stage: Stage) -> None:
    body = stage.body(client="shop/db-1", identity=identity_hash(SIBLING_RECORD))
    snapshot = stage.stands(sign_manifest(body, KEYS, SIBLING), SIBLING_RECORD)
    (stage.bench.state_path / "tree.cache").unlink(missing_ok=True)
    stage.order["parent"] = control.Reference(snapshot, CLIENT, "")


def siblings_head(stage: Stage) -> None:
    body = stage.body(
        client="shop/db-1", identity=identity_hash(SIBLING_RECORD), seq=2, prev=stage.head
    )
    snapshot = stage.stands(sign_manifest(body, KEYS, SIBLING), SIBLING_RECORD)
    stage.order.update(head_seq=2, head=snapshot)


def signed_by_a_sibling(stage: Stage) -> None:
    """A sibling has the MAC's key, not the client's."""
    stage.order["snapshot"] = stage.stands(
        sign_manifest(stage.body(tags=("forged",)), KEYS, SIBLING)
    )


def sibling_in_anothers_name(stage: Stage) -> None:
    """A sibling signs with its own, honest identity, and says that it is this client."""
    stage.bench.repository.add_identity(SIBLING_RECORD)
    body = stage.body(identity=identity_hash(SIBLING_RECORD))
    stage.order["snapshot"] = stage.stands(sign_manifest(body, KEYS, SIBLING), SIBLING_RECORD)


def unsigned_mac(stage: Stage) -> None:
    """The server signs with an identity of its own making, and cannot make the MAC."""
    stage.bench.repository.add_identity(SERVERS_RECORD)
    body = stage.body(identity=identity_hash(SERVERS_RECORD))
    stage.order["snapshot"] = stage.stands(sign_manifest(body, KEYS, SERVERS_KEY), SERVERS_RECORD)


def forged_head(stage: Stage) -> None:
    manifest = sign_manifest(stage.body(seq=2, prev=stage.head), INVENTED_KEYS, IDENTITY)
    stage.order.update(head_seq=2, head=stage.stands(manifest))


def rolled_back(stage: Stage) -> None:
    stage.order.update(head_seq=0, head=bytes(32), parent=None)


def another_head(stage: Stage) -> None:
    manifest = sign_manifest(stage.body(tags=("replayed",)), KEYS, IDENTITY)
    stage.order.update(head_seq=1, head=stage.stands(manifest))


def reordered(stage: Stage) -> None:
    """Number 3 follows number 2, which follows something else than what is remembered."""
    second = stage.stands(sign_manifest(stage.body(seq=2, prev=noise("x")), KEYS, IDENTITY))
    third = stage.stands(sign_manifest(stage.body(seq=3, prev=second), KEYS, IDENTITY))
    stage.order.update(head_seq=3, head=third)


def skipping(stage: Stage) -> None:
    """A head whose number is higher than what it follows allows."""
    far = stage.stands(sign_manifest(stage.body(seq=9, prev=stage.head), KEYS, IDENTITY))
    stage.order.update(head_seq=9, head=far)


def other_commit(stage: Stage) -> None:
    stage.tells("commit", {"snapshot": noise("x").hex(), "time_ns": 1})
    stage.says("manifest", b"not a manifest")


def replayed_commit(stage: Stage) -> None:
    """The commit is answered with an older snapshot: the new one is thrown away."""
    stage.tells("commit", {"snapshot": stage.head.hex(), "time_ns": 1})


def bomb(stage: Stage) -> None:
    """A frame of a few bytes that declares 1 GiB, sealed by somebody with the key."""
    packed = bytearray(zstandard.ZstdCompressor().compress(bytes(5 * MIB)))
    assert packed[4] >> 6 == 2, "the frame has its size in four bytes"
    packed[6:10] = (1 << 30).to_bytes(4, "little")
    assert zstandard.frame_content_size(bytes(packed)) == 1 << 30

    def change(chunk: FetchedChunk) -> FetchedChunk:
        content = ChunkType.CONTENT
        sealed = seal_saying(
            KEYS, content, chunk.id, bytes(packed), plain_bytes=4 * MIB, is_zstd=True
        )
        return FetchedChunk(chunk.id, ChunkStatus.HERE, "packs/x", 0, sealed)

    stage.chunks(lambda chunk: chunk if is_tree(stage, chunk) else change(chunk))


def is_tree(stage: Stage, chunk: FetchedChunk) -> bool:
    return stage.bench.repository.live[chunk.id].type == ChunkType.TREE


def swapped(stage: Stage) -> None:
    """Every chunk brings another one's bytes."""
    live = stage.bench.repository.live
    contents = [c for c, stored in live.items() if stored.type == ChunkType.CONTENT]

    def change(chunk: FetchedChunk) -> FetchedChunk:
        if is_tree(stage, chunk):
            return chunk
        other = next(c for c in contents if c != chunk.id)
        return FetchedChunk(chunk.id, ChunkStatus.HERE, "packs/x", 0, live[other].sealed)

    stage.chunks(change)


def siblings_lie(stage: Stage) -> None:
    """Whoever holds the key seals other content of the same length under the chunk's id."""
    sealer, opener = Sealer(KEYS), Opener(KEYS)

    def change(chunk: FetchedChunk) -> FetchedChunk:
        if is_tree(stage, chunk):
            return chunk
        length = len(opener.open(ChunkType.CONTENT, ChunkId(chunk.id), chunk.sealed))
        sealed = sealer.seal(ChunkType.CONTENT, noise("lie", length), ChunkId(chunk.id))
        return FetchedChunk(chunk.id, ChunkStatus.HERE, "packs/x", 0, bytes(sealed.sealed))

    stage.chunks(change)


def other_answer(stage: Stage) -> None:
    stage.chunks(lambda chunk: FetchedChunk(noise("x"), ChunkStatus.HERE, "p", 0, chunk.sealed))


def flipped(stage: Stage) -> None:
    stage.chunks(
        lambda chunk: (
            FetchedChunk(chunk.id, chunk.status, chunk.object, 0, bytes(chunk.sealed[:-1]) + b"\0")
            if not is_tree(stage, chunk)
            else chunk
        )
    )


def absent(stage: Stage) -> None:
    stage.chunks(
        lambda chunk: (
            chunk
            if is_tree(stage, chunk)
            else FetchedChunk(chunk.id, ChunkStatus.NOT_THERE, "", 0, b"")
        )
    )


def long_chunk(stage: Stage) -> None:
    head = b"\0\0" + bytes(4) + b"\xff\xff\xff\xff"
    stage.chunks(lambda chunk: chunk.id + b"\0" + head)


def long_name(stage: Stage) -> None:
    stage.chunks(lambda chunk: chunk.id + b"\0\xff\xff" + bytes(8))


def unknown_status(stage: Stage) -> None:
    stage.chunks(lambda chunk: chunk.id + b"\7" + bytes(10))


def more_than_asked(stage: Stage) -> None:
    stage.chunks(lambda chunk: chunk_record(chunk) + b"more")


def endless_manifest(stage: Stage) -> None:
    stage.streams("manifest", forever)


def endless_identity(stage: Stage) -> None:
    stage.streams("identity", forever)


def endless_domain(stage: Stage) -> None:
    stage.streams("domain", forever)


def endless_names(stage: Stage) -> None:
    stage.tells("names", {"names": []})
    stage.tells("session", _session(packs=[]))


def _session(**changes: Any) -> dict[str, Any]:
    row = {"session": new_ulid(), "packs": [new_ulid()], "refs": new_ulid()}
    return {**row, "manifest": new_ulid(), **changes}


def endless_conflicts(stage: Stage) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        raise Conflict("it is there")

    stage.server.lies["put"] = answer


def endless_missing(stage: Stage) -> None:
    page = {"missing": [noise("m").hex()], "damaged": [], "next": noise("m").hex()}
    row = {"type": "about:blank", "title": "missing", "status": 409, "code": "missing-chunks"}
    stage.tells("commit", {**row, "detail": "missing", "details": page}, 409)
    stage.tells("missing", page)


def missing_for_ever(stage: Stage) -> None:
    page = {"missing": [noise("m").hex()], "damaged": [], "next": ""}
    row = {"type": "about:blank", "title": "missing", "status": 409, "code": "missing-chunks"}
    stage.tells("commit", {**row, "detail": "missing", "details": page}, 409)


def damaged_backwards(stage: Stage) -> None:
    stage.order["damaged"] = 5
    stage.says("damaged", noise("b") * 2)


def damaged_torn(stage: Stage) -> None:
    stage.order["damaged"] = 5
    stage.says("damaged", b"torn")


def domain_of_another_key(stage: Stage) -> None:
    stage.says("domain", domain_with(key_check=noise("another")))


def domain_with_wild_chunks(stage: Stage) -> None:
    stage.says("domain", domain_with(chunker={"version": 1, "min": 1, "avg": 2, "max": 1 << 40}))


def domain_with_huge_small_files(stage: Stage) -> None:
    stage.says("domain", domain_with(small_file_bytes_max=1 << 40))


def domain_without_mac(stage: Stage) -> None:
    stage.says("domain", encode_domain(encode_domain_body(domain_body()), bytes(32)))


def domain_of_nothing(stage: Stage) -> None:
    stage.says("domain", b"")


RESTORE, BACKUP, VERIFY = "restore", "backup", "verify"
"""Jobs that meet a lie."""
Attack = Callable[[Stage], None]
LIES: dict[str, tuple[Attack, str, str]] = {
    "another client's manifest as one's own": (another_manifest, RESTORE, "damaged"),
    "a manifest of nothing": (lambda s: s.says("manifest"), RESTORE, "damaged"),
    "a manifest without end": (endless_manifest, RESTORE, "invalid"),
    "an identity record without end": (endless_identity, RESTORE, "invalid"),
    "a domain record without end": (endless_domain, VERIFY, "invalid"),
    "a manifest signed by a sibling": (signed_by_a_sibling, RESTORE, "damaged"),
    "a sibling's manifest in this client's name": (sibling_in_anothers_name, RESTORE, "damaged"),
    "an identity of the server's making": (unsigned_mac, RESTORE, "damaged"),
    "another identity record": (lambda s: s.says("identity", SIBLING_RECORD), RESTORE, "damaged"),
    "a snapshot that is not there": (lambda s: s.says("manifest", b"", 404), RESTORE, "invalid"),
    "a redirect to another place": (
        lambda s: s.says("manifest", b"", 302, Location="http://127.0.0.1:1/"), RESTORE, "invalid",
    ),
    "a page of a proxy": (lambda s: s.says("manifest", b"<html>", 403), RESTORE, "invalid"),
    "a chunk under another id": (swapped, RESTORE, "damaged"),
    "other content sealed under the id": (siblings_lie, RESTORE, "damaged"),
    "another chunk than asked": (other_answer, RESTORE, "invalid"),
    "a chunk with a flipped bit": (flipped, RESTORE, "damaged"),
    "a chunk that is not there": (absent, RESTORE, "damaged"),
    "a chunk of 4 GiB": (long_chunk, RESTORE, "invalid"),
    "a chunk with a long name": (long_name, RESTORE, "invalid"),
    "a chunk of unknown status": (unknown_status, RESTORE, "invalid"),
    "more than asked": (more_than_asked, RESTORE, "invalid"),
    "a chunk that bombs": (bomb, RESTORE, "damaged"),
    "verify of a swapped chunk": (swapped, VERIFY, "damaged"),
    "verify of a chunk that bombs": (bomb, VERIFY, "damaged"),
    "a rolled back history": (rolled_back, BACKUP, "history-regressed"),
    "another head of the same number": (another_head, BACKUP, "history-regressed"),
    "a reordered history": (reordered, BACKUP, "history-regressed"),
    "a history with a gap": (skipping, BACKUP, "history-regressed"),
    "a head that the server forged": (forged_head, BACKUP, "damaged"),
    "a sibling's snapshot as head": (siblings_head, BACKUP, "history-regressed"),
    "a sibling's snapshot as parent": (siblings_parent, BACKUP, "refused"),
    "a commit of something else": (other_commit, BACKUP, "damaged"),
    "a commit that is the one before": (replayed_commit, BACKUP, "history-regressed"),
    "a commit that is none": (
        lambda s: s.tells("commit", {"snapshot": "x", "time_ns": 1}), BACKUP, "invalid",
    ),
    "no names": (endless_names, BACKUP, "invalid"),
    "a session that is a path": (
        lambda s: s.tells("session", _session(session="../../v1/domains/A")), BACKUP, "invalid",
    ),
    "a name that is a path": (
        lambda s: s.tells("session", _session(packs=["../../../v1/tokens/AAAAAAA"])), BACKUP,
        "invalid",
    ),
    "a session that is none": (lambda s: s.says("session", b"\xff\xff"), BACKUP, "invalid"),
    "conflicts without end": (endless_conflicts, BACKUP, "conflict"),
    "missing chunks in a circle": (endless_missing, BACKUP, "invalid"),
    "missing chunks for ever": (missing_for_ever, BACKUP, "missing-chunks"),
    "an answer to have of another length": (lambda s: s.says("have", b"\1"), BACKUP, "invalid"),
    "damaged ids in disorder": (damaged_backwards, BACKUP, "invalid"),
    "a torn list of damaged ids": (damaged_torn, BACKUP, "invalid"),
    "a domain record of another key": (domain_of_another_key, BACKUP, "wrong-key"),
    "a domain record with wild chunk sizes": (domain_with_wild_chunks, BACKUP, "damaged"),
    "a domain record with huge small files": (domain_with_huge_small_files, BACKUP, "damaged"),
    "a domain record without its MAC": (domain_without_mac, BACKUP, "damaged"),
    "a domain record of nothing": (domain_of_nothing, BACKUP, "damaged"),
}  # fmt: skip
