"""Write the seeds of the corpus: sound objects, and a few that are wrong in a telling way.

    python -m tests.fuzz.make_corpus

Finds lie beside them. A folder that exists stays as it is.
"""

from __future__ import annotations

import io
import struct

import msgspec
import zstandard
from blake3 import blake3

from holdfast_agent.crypto.keys import encode_key_material, format_key_file
from holdfast_agent.crypto.sealing import Sealer
from holdfast_agent.crypto.wraps import (
    format_private_file,
    format_recipient_file,
    format_recovery_file,
    new_recovery,
    public_key_of,
    wrap_keys,
)
from holdfast_agent.jobs.outcome import failed
from holdfast_agent.tree.block import encode_attributes_block, encode_extents_block
from holdfast_agent.tree.entry import HOLE_CHUNK, Extent
from holdfast_agent.tree.page import encode_page, encode_stat_part
from holdfast_contract.errors import NotFound
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.refs import encode_difference, encode_full, refs_set_of
from holdfast_contract.format.report import ReportKind, ReportRow, encode_report
from holdfast_contract.protocol import control
from holdfast_server.control.orders import BackupSpec, encode_spec
from holdfast_server.repository.journal_object import JournalObject, encode_journal
from holdfast_server.repository.journal_records import StoreMade, encode_record
from tests.fuzz.objects import PLAINTEXT
from tests.fuzz.targets import CORPUS
from tests.support.samples import (
    DOMAIN,
    DOMAIN_RECORD,
    IDENTITY_RECORD,
    KEYS,
    MANIFEST,
    MATERIAL,
    ids,
    noise,
    sample_entries,
    small_pack,
)
from tests.support.vectors import stored

_ULID = "01JQ0000000000000000000000"


def _refs() -> tuple[bytes, bytes]:
    one, two = ids(4), ids(6)
    full, difference = io.BytesIO(), io.BytesIO()
    encode_full(DOMAIN, one, len(one), refs_set_of(one), full.write)
    added, removed = sorted(set(two) - set(one)), sorted(set(one) - set(two))
    encode_difference(
        DOMAIN,
        (refs_set_of(two), len(two)),
        (_ULID, refs_set_of(one)),
        (added, len(added)),
        (removed, len(removed)),
        difference.write,
    )
    return full.getvalue(), difference.getvalue()


def _inside() -> list[bytes]:
    plain = b"some plaintext " * 40
    frame = zstandard.ZstdCompressor().compress(plain)
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    # A frame that declares a gibibyte and has one byte: a library that believes it allocates it.
    liar = bytes.fromhex("28b52ffda0") + struct.pack("<I", 1 << 30) + bytes.fromhex("0900004c")
    return [
        b"\0\0" + struct.pack("<I", len(plain)) + plain,
        b"\0\1" + struct.pack("<I", len(plain)) + frame,
        b"\0\1" + struct.pack("<I", 64 << 20) + bomb,
        b"\0\1" + struct.pack("<I", 4 << 20) + bomb,
        b"\0\1" + struct.pack("<I", len(plain)) + unsized,
        b"\0\1" + struct.pack("<I", 1 << 30) + liar,
        b"\1\1" + struct.pack("<I", 1) + liar,
    ]


def _objects() -> dict[str, list[bytes]]:
    full, difference = _refs()
    stats, contents = sample_entries()
    record = encode_record(StoreMade(time_ns=10**18, store_id=noise("store", 16)))
    journal = encode_journal(JournalObject(noise("store", 16), 1, 1, bytes(32), [record]))
    extents = [Extent(noise("chunk"), 5, 100), Extent(HOLE_CHUNK, 0, 1 << 40)]
    pack = small_pack(2)
    body = slice(12, -96)
    record_body = slice(12, -32)
    return {
        "chunk_header": [stored("chunk_tree")],
        "sealed_chunk": [
            bytes(Sealer(KEYS).seal(ChunkType.TREE, PLAINTEXT).sealed),
            stored("chunk_tree"),
        ],
        "inside_chunk": _inside(),
        "pack": [pack, stored("pack")],
        "footer": [pack, stored("pack")[:24] + stored("pack")[-400:]],
        "frames": [pack, pack[:300], b"HFFR" * 50],
        "refs_header": [full, difference],
        "refs_full": [full],
        "refs_difference": [difference],
        "manifest": [MANIFEST, stored("manifest")],
        "manifest_body": [MANIFEST[body]],
        "manifest_parts": [MANIFEST],
        "identity": [IDENTITY_RECORD],
        "identity_body": [IDENTITY_RECORD[record_body]],
        "identity_parts": [IDENTITY_RECORD],
        "domain": [DOMAIN_RECORD],
        "domain_body": [DOMAIN_RECORD[record_body]],
        "domain_parts": [DOMAIN_RECORD],
        "wrap": [wrap_keys(MATERIAL, public_key_of(noise("private"))).sealed],
        "key_material": [encode_key_material(MATERIAL)],
        "report": [encode_report(ReportKind.SKIPPED, [ReportRow(b"/a", "denied", "no")], 3)],
        "journal": [journal],
        "journal_record": [record],
        "page": [encode_page(encode_stat_part(stats), contents), stored("page")],
        "page_id_table": [stored("page")],
        "extents_block": [encode_extents_block(extents), stored("block_extents")],
        "attributes_block": [encode_attributes_block(((b"user.a", b"x"),))],
    }


def _messages() -> dict[str, list[bytes]]:
    order = control.Backup(
        job=_ULID,
        paths=[b"/data"],
        excludes=["*.log"],
        tags=["t"],
        head_seq=1,
        head=noise("head"),
        parent=control.Reference(noise("head"), "shop/db-0", _ULID),
        references=[],
        damaged=2,
        epoch_min=1,
        limit_upload=0,
    )
    spec = BackupSpec(paths=[b"/data"], excludes=[], tags=[], parent=noise("parent"))
    accepted = control.encode(control.Accepted(job=_ULID))
    end = failed(_ULID, NotFound("no", hint="look"))
    marked = control.encode(failed(_ULID, NotFound("no", object="mark")).finished)
    deep = marked.replace(b"\xa4mark", b"\x91" * 4000)
    texts = [
        {"name": "shop", "record_b64": "AAAA", "role": "admin", "domains": ["shop"], "ttl": 60},
        {"kind": "backup", "clients": ["shop/db-0"], "paths": ["/data"], "excludes": ["*.log"]},
        {"manifest": _ULID, "refs": _ULID, "seq": 1, "missing": ["00" * 32], "damaged": []},
        {"chunk": "00" * 32, "object": "packs/x", "offset": 5, "reason": "tag"},
    ]
    return {
        "to_agent": [control.encode(order), control.encode(control.Cancel(job=_ULID)), deep],
        "to_server": [accepted, control.encode(end.finished), deep],
        "http_records": [msgspec.json.encode(text) for text in texts],
        # Unknown fields are skipped, however deep they are: a decoder's own stack has an end.
        "specs": [encode_spec(spec), b"\x82\xa4kind\xa6backup\xa1x" + b"\x91" * 4000],
        "outcome": [end.encode(), b"\x81\xa1x" + b"\x91" * 4000],
        "problem": [
            b'{"type": "x", "title": "t", "status": 404, "code": "not-found", "details": {"a": 1}}',
            b'{"x": ' + b"[" * 4000,
        ],
        "failure_header": [
            b'{"code": "not-found", "message": "no", "hint": "", "details": {"object": "x"}}',
            b'{"x": ' + b"[" * 4000,
        ],
        "answer_rows": [
            b'{"path": "/a", "size": 1}\n{"type": "end"}\n',
            b'{"type": "error", "code": "damaged", "message": "m", "hint": "h"}',
            b'{"type": "error", "code": {}, "message": []}',
            b"[" * 4000,
        ],
    }


def _texts() -> dict[str, list[bytes]]:
    recovery, _ = new_recovery("shop", MATERIAL)
    public = public_key_of(noise("private"))
    lines = {
        "key_file": [format_key_file(MATERIAL)],
        "recovery_file": [format_recovery_file(recovery)],
        "recipient_file": [format_recipient_file(public)],
        "private_file": [format_private_file(noise("private"))],
        "reference": ["shop/db-0@2026-01-31T12:00:00Z:/data/a", "latest:/x", "abcdef123456"],
        "moment": [
            "2026-01-31T12:00:00.123456789+02:00",
            "2026-01-31",
            "0001-01-01T00:00:00+23:59",
        ],
        "names": ["shop/db-0", "cluster.ns/web-0", "packs/00/01J"],
        "patterns": ["*.log\n!keep/**/x\n[a-z]?\\*", "*a*a*a*a*a*a*a*b", "**/a/**/b/**/c/**/d"],
        "sizes": ["5M", "800K", "1T"],
        "durations": ["1h", "90s", "7d"],
        "settings": ["https://[::1]:9440", "file:/srv/store", "*.example.org", "/a/b", "true"],
        "config_file": [
            "x = " + "[" * 4000,
            'listen = "127.0.0.1:0"\nroots = ["/a"]\n[x]\ny = 1979-05-27T07:32:00Z\n',
        ],
        "shown": ["plain", "\x1b[31mred\u202e"],
    }
    return {name: [text.encode() for text in texts] for name, texts in lines.items()}


def main() -> None:
    """Write the seeds of every target that has none, under the hash of their bytes."""
    for name, seeds in (_objects() | _messages() | _texts()).items():
        folder = CORPUS / name
        if folder.exists():
            continue  # Sealing takes random salts: the same seed would come once more.
        folder.mkdir(parents=True)
        for seed in seeds:
            (folder / blake3(seed).hexdigest()[:16]).write_bytes(bytes(seed))


if __name__ == "__main__":
    main()
