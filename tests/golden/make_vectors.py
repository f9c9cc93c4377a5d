"""Wrote the golden vectors of format version 1, once; it refuses to write them again.

They are what repositories out there look like: a test that fails on them has found a change of
the format, and the change is wrong. A later version of the format gets a folder of its own.
Run from the top of the repository: `python -m tests.golden.make_vectors`.
"""

from __future__ import annotations

import io
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import (
    DomainKeys,
    KeyMaterial,
    chunk_id,
    content_id,
    encode_key_material,
    format_key_file,
    link_group,
)
from holdfast_agent.crypto.sealing import Sealer
from holdfast_agent.crypto.wraps import Recovery, format_recovery_file, wrap_keys
from holdfast_agent.tree.block import encode_attributes_block, encode_extents_block
from holdfast_agent.tree.entry import HOLE_CHUNK, SELF_CHUNK, Extent
from holdfast_agent.tree.page import cut_pages, decode_page, encode_page, encode_stat_part
from holdfast_contract.format.chunk import ChunkType, padme
from holdfast_contract.format.manifest import dataset_id, snapshot_id
from holdfast_contract.format.pack import PackWriter
from holdfast_contract.format.refs import encode_difference, encode_full, refs_set_of
from holdfast_contract.format.report import ReportKind, ReportRow, encode_report
from tests.support import samples
from tests.support.samples import DOMAIN, KEYS, MATERIAL, noise
from tests.support.vectors import FOLDER, jsonable

BASE_ULID = "01JQ0000000000000000000000"
Vectors = tuple[dict[str, Any], dict[str, bytes]]


def derived_key(name: str) -> Any:
    value = getattr(KEYS, name)
    return jsonable(value if isinstance(value, bytes) else dict(value))


def keys() -> Vectors:
    recovery_private = noise("recovery private")
    public = X25519PrivateKey.from_private_bytes(recovery_private).public_key()
    wrap = wrap_keys(MATERIAL, public.public_bytes_raw())
    later = KeyMaterial(DOMAIN, MATERIAL.base_secret, ((7, noise("7")), (9, noise("9"))))
    later_wrap = wrap_keys(later, public.public_bytes_raw())
    recovery = Recovery("shop", DOMAIN, KEYS.key_check, recovery_private, (wrap,))
    derived = ("id", "content", "cdc", "name", "manifest", "key_check", "data", "epoch_checks")
    sign_private, box_private = noise("sign"), noise("box")
    identity = IdentityKey(sign_private, box_private)
    return {
        "keys": {
            "domain": jsonable(DOMAIN),
            "base_secret": jsonable(MATERIAL.base_secret),
            "epochs": jsonable(MATERIAL.epochs),
            "material": jsonable(encode_key_material(MATERIAL)),
            "key_file": format_key_file(MATERIAL),
            "derived": {name: derived_key(name) for name in derived},
            "sign_private": jsonable(sign_private),
            "box_private": jsonable(box_private),
            "sign_public": jsonable(identity.sign_public),
            "box_public": jsonable(identity.box_public),
        },
        "wraps": {
            "private_key": jsonable(recovery_private),
            "wrap": jsonable(wrap),
            "later": jsonable(later_wrap),
            "later_epochs": jsonable(later.epochs),
            "recovery_file": format_recovery_file(recovery),
        },
    }, {}


def chunks() -> Vectors:
    old = Sealer(DomainKeys(KeyMaterial(DOMAIN, MATERIAL.base_secret, MATERIAL.epochs[:1])))
    new = Sealer(KEYS)
    report = encode_report(
        ReportKind.SKIPPED, [ReportRow(b"/data/\xff", "denied", "permission denied")], more=2
    )
    plain = {
        "chunk_raw": (new, ChunkType.CONTENT, noise("raw", 1000)),
        "chunk_zstd": (new, ChunkType.CONTENT, b"holdfast " * 500),
        "chunk_one_byte": (new, ChunkType.CONTENT, b"\0"),
        "chunk_epoch_1": (old, ChunkType.CONTENT, b"sealed with the first epoch"),
        "chunk_tree": (new, ChunkType.TREE, samples_page()),
        "chunk_report": (new, ChunkType.REPORT, report),
    }
    writer = PackWriter(DOMAIN)
    rows, files = {}, {}
    for name, (sealer, kind, data) in plain.items():
        chunk = sealer.seal(kind, data)
        files[name] = bytes(chunk.sealed)
        entry = writer.add(chunk.chunk_id, bytes(chunk.sealed), chunk.storage_hash)
        rows[name] = {
            "type": int(kind),
            "plaintext": data.hex(),
            "chunk_id": chunk.chunk_id.hex(),
            "storage_hash": chunk.storage_hash.hex(),
            "epoch": chunk.epoch,
        }
        assert entry.length == len(chunk.sealed)
    files["pack"] = b"".join(writer.finish())
    return {
        "chunks": rows,
        "pack": {"entries": jsonable(writer.entries)},
        "report": {"plaintext": report.hex(), "kind": 1, "more": 2},
        "padme": [[n, padme(n)] for n in (2, 9, 10, 17, 100, 1000, 65_537, 4_194_312)],
    }, files


def samples_page() -> bytes:
    stats, contents = samples.sample_entries()
    return encode_page(encode_stat_part(stats), contents)


def tree() -> Vectors:
    page = samples_page()
    decoded = decode_page(page, samples.OWN_CHUNK, 5000)
    extents = [Extent(noise("a"), 1, 2), Extent(HOLE_CHUNK, 0, 1 << 40), Extent(SELF_CHUNK, 3, 4)]
    attributes = [(b"security.x", b"\0\xff"), (b"user.a", b"")]
    names = sorted(b"name %d" % number for number in range(2000))
    return {
        "page": {
            "own_chunk": samples.OWN_CHUNK.hex(),
            "own_offset": 5000,
            "stats": jsonable(decoded.stats),
            "contents": jsonable(decoded.contents),
            "ids": jsonable(decoded.ids),
        },
        "blocks": {"extents": jsonable(extents), "attributes": jsonable(attributes)},
        "cuts": {
            "names": "sorted(b'name %d' % n for n in range(2000))",
            "ends": cut_pages(names, KEYS.name),
        },
        "hashes": {
            "chunk_ids": {str(int(kind)): chunk_id(KEYS, kind, b"abc").hex() for kind in ChunkType},
            "content_id": content_id(KEYS, b"abc" + bytes(5000) + b"def").hex(),
            "link_group": link_group(KEYS, b"/data", 1 << 63).hex(),
            "dataset": dataset_id([b"/data", b"/srv/\xff"], ["*.tmp", "größe"]).hex(),
        },
    }, {
        "page": page,
        "block_extents": encode_extents_block(extents),
        "block_attributes": encode_attributes_block(attributes),
    }


def refs() -> Vectors:
    base, whole = samples.ids(10), samples.ids(14)[3:]
    full, difference = io.BytesIO(), io.BytesIO()
    encode_full(DOMAIN, base, len(base), refs_set_of(base), full.write)
    added, removed = sorted(set(whole) - set(base)), sorted(set(base) - set(whole))
    encode_difference(
        DOMAIN,
        (refs_set_of(whole), len(whole)),
        (BASE_ULID, refs_set_of(base)),
        (added, len(added)),
        (removed, len(removed)),
        difference.write,
    )
    return {
        "refs": {
            "base": BASE_ULID,
            "base_ids": jsonable(base),
            "whole_ids": jsonable(whole),
            "base_set": refs_set_of(base).hex(),
            "whole_set": refs_set_of(whole).hex(),
        }
    }, {"refs_full": full.getvalue(), "refs_difference": difference.getvalue()}


def records() -> Vectors:
    return {
        "records": {
            "manifest": jsonable(samples.manifest_body()),
            "identity": jsonable(samples.identity_body()),
            "domain": jsonable(samples.domain_body()),
            "snapshot": snapshot_id(samples.MANIFEST).hex(),
        }
    }, {
        "manifest": samples.MANIFEST,
        "identity": samples.IDENTITY_RECORD,
        "domain": samples.DOMAIN_RECORD,
    }


def main() -> None:
    if FOLDER.exists():
        raise SystemExit(f"{FOLDER.name} stands, and stays as it is")
    values: dict[str, Any] = {}
    FOLDER.mkdir()
    for made, files in (keys(), chunks(), tree(), refs(), records()):
        values |= made
        for name, data in files.items():
            (FOLDER / f"{name}.bin").write_bytes(data)
    (FOLDER / "vectors.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
