#!/usr/bin/env python3
"""Restore a Holdfast snapshot from a store directory and a key file, without Holdfast.

Written from docs/format.md alone and in its words: a second opinion on that page and on every
store. Needs Linux and Python 3.11 with the packages blake3, cryptography and zstandard.
Exit: 0 done; 1 failed; 2 wrong usage; 3 restored, but not all of it exactly; 10 not found;
11 the target is in use; 12 wrong key; 13 damage: named, and everything else is restored.
"""
# ruff: noqa: D102, D103 - docstrings where the name and format.md do not say it already

from __future__ import annotations

import argparse
import base64
import hmac
import os
import re
import resource
import stat
import struct
import sys
from collections import namedtuple
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, NoReturn

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIB, ZERO, ONES = 1 << 20, bytes(32), b"\xff" * 32
CONTENT, TREE, REPORT = 1, 2, 3  # types of chunks
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK = range(1, 8)  # types of entries
IMPLIED, SKIPPED = 2, 4  # flags of entries
NODES = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
EXAMPLE = "example: format_reader.py /srv/store shop.key restore 3f9a2c /mnt/out --path /data/a"
# The keys of every MessagePack map: bodies, then the records of the journal.
MAPS = """HFDM=domain name revision created_ns chunker small_file_bytes_max share_references key_check
    epoch_checks wraps; HFID=domain client lineage heads sign_key box_key previous reason time_ns;
    HFMF=domain client lineage identity seq prev parent dataset known_seq known_hash started_ns
    agent_time_ns paths excludes tags tree refs_set refs_count epoch_min epoch_new files dirs bytes
    bytes_new result consistency report agent_version; report=kind rows more;
    extra=xattrs link target device spill xattr_blocks; store=time_ns store_id;
    domain=time_ns domain name object revision; identity=time_ns domain client object identity;
    commit=time_ns domain client snapshot seq manifest refs; tag=time_ns domain snapshot tags;
    forget=time_ns domain snapshot; undelete=time_ns domain snapshot; deletion=time_ns objects;
    purge=time_ns domain snapshot; pin=time_ns domain snapshot; unpin=time_ns domain snapshot;
    damaged=time_ns domain chunk object offset; quarantine=time_ns domain client since_ns"""
KEYS = {name: set(keys.split()) for name, keys in re.findall(r"(\w+)=([^;]+)", MAPS)}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = dict(zip(range(0xCC, 0xD4), "BHIQbhiq", strict=True))
FAMILIES = {0xC4: (bytes, 1), 0xC5: (bytes, 2), 0xC6: (bytes, 4), 0xD9: (str, 1), 0xDA: (str, 2)}
FAMILIES |= {0xDB: (str, 4), 0xDC: (list, 2), 0xDD: (list, 4), 0xDE: (dict, 2), 0xDF: (dict, 4)}
Extent = namedtuple("Extent", "chunk offset length")  # chunk ZERO: a hole
STAT_FIELDS = "name kind mode size mtime_ns ctime_ns inode flags"
Entry = namedtuple("Entry", STAT_FIELDS + " owner content_id extents extra")


class Damage(Exception):
    """Stored bytes are not what the format says; none of them is used."""


# What reading stored bytes raises: too few of them struct.error, an absent object OSError, ...
BROKEN = (Damage, struct.error, ArithmeticError, LookupError, TypeError, ValueError, OSError)
BROKEN += (InvalidSignature, InvalidTag, zstandard.ZstdError)


def require(fact: bool, why: str) -> None:
    if not fact:
        raise Damage(why)


def stop(code: int, why: object) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(code)


def unpack(data: bytes, at: int = 0, depth: int = 0) -> tuple[Any, int]:
    """Return the MessagePack value at `at`, and the offset behind it; only what the format uses."""
    require(at < len(data) and depth < 16, "MessagePack cut off, or nested too deeply")
    tag, at = data[at], at + 1
    if tag < 0x80 or tag >= 0xE0:
        return (tag if tag < 0x80 else tag - 256), at
    if tag in CONSTANTS:
        return CONSTANTS[tag], at
    if tag in NUMBERS:
        (number,) = struct.unpack_from(">" + NUMBERS[tag], data, at)
        return number, at + struct.calcsize(NUMBERS[tag])
    if tag < 0xC0:
        family = dict if tag < 0x90 else list if tag < 0xA0 else str
        count = tag & (31 if family is str else 15)
    else:
        require(tag in FAMILIES, f"MessagePack tag {tag:#x} has no place here")
        family, width = FAMILIES[tag]
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
    require(at + count <= len(data), "MessagePack cut off")
    if family in (bytes, str):
        raw = data[at : at + count]
        return (raw if family is bytes else raw.decode("utf-8")), at + count
    values = []
    for _ in range(count * 2 if family is dict else count):
        value, at = unpack(data, at, depth + 1)
        values.append(value)
    found = values if family is list else dict(zip(values[::2], values[1::2], strict=True))
    require(len(found) == count, "MessagePack key that stands twice")
    return found, at


def body_of(data: bytes) -> Any:
    value, end = unpack(data)
    require(end == len(data), "bytes behind a MessagePack value")
    return value


def frame_of(chunk_id: bytes, length: int) -> bytes:
    frame = struct.pack("<4sI32s", b"HFFR", length, chunk_id)
    return frame + blake3(frame).digest()[:8]


def set_hash(ids: set[bytes]) -> bytes:
    return blake3(b"".join(sorted(ids))).digest()


class Keys:
    """What the key file holds, and what follows from it."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            word, domain, material = file.read(1 << 17).removesuffix(b"\n").split(b" ")
        self.domain, raw = bytes.fromhex(domain.decode()), base64.b64decode(material, validate=True)
        (count,) = struct.unpack_from("<H", raw, 32)
        epochs = dict(struct.unpack_from("<I32s", raw, 34 + 36 * i) for i in range(count))
        check = blake3(b"holdfast/1/key-material" + self.domain + raw[:-8]).digest()[:8]
        require(word == b"holdfast-key-1" and domain == self.domain.hex().encode(), "first words")
        require(list(epochs) == sorted(epochs) and 1 <= count <= 1024, "epochs")
        require(len(raw) == 42 + 36 * len(epochs) and check == raw[-8:], "length or check")
        uses = ("chunk-id", "content-id", "manifest", "key-check")
        keys = [self.derive(raw[:32], use) for use in uses]
        self.chunk_id, self.content_id, self.manifest, self.key_check = keys
        self.data = {e: self.derive(secret, "data", e) for e, secret in epochs.items()}

    def derive(self, secret: bytes, use: str, epoch: int | None = None) -> bytes:
        info = b"holdfast/1/" + use.encode() + (b"" if epoch is None else struct.pack("<I", epoch))
        return HKDF(algorithm=SHA256(), length=32, salt=self.domain, info=info).derive(secret)

    def open(self, chunk_id: bytes, kind: int, sealed: bytes) -> bytes:
        """Return the plaintext of a sealed chunk that was asked for by this id and type."""
        known, flags, epoch, salt, com = struct.unpack("<7sBI16s32s", sealed[:60])
        require(known == b"HFCK\1\1" + bytes([kind]) and flags in (0, 1), "header, or its type")
        require(epoch in self.data, f"sealed with epoch {epoch}, which the key file lacks")
        context = b"holdfast/1/chunk" + struct.pack("<I", epoch) + chunk_id + salt
        derived = hmac.digest(self.data[epoch], context, "sha512")
        require(hmac.compare_digest(derived[32:], com), "key commitment differs")
        aad = sealed[:60] + self.domain + chunk_id
        inside = AESGCM(derived[:32]).decrypt(bytes(12), sealed[60:], aad)
        plain_len, payload_len = struct.unpack_from("<II", inside)
        used = 8 + payload_len
        exponent = used.bit_length() - 1
        step = 1 << (exponent - exponent.bit_length())
        require(used <= len(inside) == -(-used // step) * step, "wrong padded length")
        require(not any(inside[used:]), "padding is not zero")
        require(1 <= plain_len <= (MIB if kind == TREE else 4 * MIB), "forbidden length")
        plaintext = payload = inside[8:used]
        if flags:  # the size that a frame declares is believed only when authenticated
            declared = zstandard.get_frame_parameters(payload).content_size
            require(declared == plain_len, "zstd frame declares another length")
            plaintext = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        require(len(plaintext) == plain_len, "length of the plaintext differs")
        is_same = blake3(bytes([kind]) + plaintext, key=self.chunk_id).digest() == chunk_id
        require(is_same, "chunk id differs")
        return plaintext


class Store:
    """A store directory, as the holder of one domain's key sees it."""

    def __init__(self, root: str, keys: Keys) -> None:
        self.root, self.keys, self.told = root, keys, set[tuple[str, str, str]]()
        self.is_torn, self.is_proven = False, False
        if not os.path.isdir(os.path.join(root, "journal")):
            stop(10, f"{root} holds no store")
        self.journal = [(k, r) for k, r in self.records() if r.get("domain") == keys.domain]
        self.domains = self.bodies("domain", "domains", b"HFDM")
        self.identities = self.bodies("identity", "identities", b"HFID")
        if not self.is_proven:
            stop(12, "the key opens nothing here: it is of another domain")
        self.copies = dict[bytes, list[tuple[str, tuple[Any, ...]]]]()
        self.chunk = lru_cache(maxsize=24)(self.open_first)

    def tell(self, kind: str, name: str, why: object) -> None:
        if (kind, name, str(why)) not in self.told:
            print(f"{kind}: {name}: {str(why) or repr(why)}", file=sys.stderr)
        self.told.add((kind, name, str(why)))

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        with open(os.path.join(self.root, name), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def name(self, folder: str, ulid: str) -> str:
        require(re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", ulid) is not None, "no ULID")
        return f"{folder}/{self.keys.domain.hex()}/{ulid}"

    def names(self, folder: str, kind: str = "", key: str = "object") -> list[str]:
        """Return the domain's objects in a folder: those of the journal, or all if it is torn."""
        path = os.path.join(self.root, folder, self.keys.domain.hex())
        stored = os.listdir(path) if os.path.isdir(path) and (self.is_torn or not kind) else []
        ulids = {*stored, *(record[key] for of, record in self.journal if of == kind)}
        return sorted(self.name(folder, ulid) for ulid in ulids if len(ulid) == 26)

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the journal's records; a missing, damaged or exchanged object is told."""
        after: Any = None
        for name in sorted(os.listdir(os.path.join(self.root, "journal"))):
            try:
                data = self.read(f"journal/{name}")
                head = struct.unpack_from("<8s16sQQI32sI", data)
                magic, store_id, number, first, count, before, length = head
                require(magic == b"HFJN\1\0\0\0" and name == f"{number:016d}", "unknown header")
                require(blake3(data[:-32]).digest() == data[-32:], "hash differs")
                records = body_of(data[80:-32])
                require(len(data) == 112 + length and len(records) == count >= 1, "wrong length")
                require(all(record.keys() == KEYS[kind] for kind, record in records), "other keys")
            except BROKEN as damage:
                self.tell("damaged", f"journal/{name}", damage)
                self.is_torn = True
                continue
            if (after or (store_id, 1, 1, ZERO)) != (store_id, number, first, before):
                self.tell("damaged", f"journal/{number - 1:016d}", "missing, or exchanged")
                self.is_torn = True
            after = (store_id, number + 1, first + count, blake3(data).digest())
            yield from records

    def authentic(self, data: bytes, magic: bytes, use: str, tail: int = 0) -> Any:
        """Return the body of a manifest or record whose MAC holds; `tail` bytes follow the MAC."""
        header, length = struct.unpack_from("<8sI", data)
        require(header == magic + b"\1\0\0\0" and len(data) == 44 + length + tail, "header")
        signed = f"holdfast/1/{use}".encode() + data[8 : 12 + length]
        mac = hmac.digest(self.keys.manifest, signed, "sha256")
        require(hmac.compare_digest(mac, data[12 + length : 44 + length]), "MAC differs")
        self.is_proven, body = True, body_of(data[12 : 12 + length])
        require(body.keys() == KEYS[magic.decode()], "body with other keys")
        require(body["domain"] == self.keys.domain, "body of another domain")
        return body

    def bodies(self, kind: str, folder: str, magic: bytes) -> dict[bytes, Any]:
        """Return the domain's records of a kind that the journal names, by their BLAKE3."""
        found, data = {}, b""
        for name in self.names(folder, kind):
            try:
                data = self.read(name)
                found[blake3(data).digest()] = self.authentic(data, magic, kind)
            except BROKEN as damage:
                self.is_proven |= self.keys.key_check in data
                self.tell("damaged", f"{name} (or another key's)", damage)
        return found

    def snapshots(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Return (body, commit record) by snapshot id; {} for a record that a torn journal lacks."""
        commits = {
            self.name("manifests", r["manifest"]): r for k, r in self.journal if k == "commit"
        }
        gone, found = {r["snapshot"] for k, r in self.journal if k == "purge"}, {}
        for name in self.names("manifests", "commit", "manifest"):
            commit = commits.get(name, {})
            try:
                data = self.read(name)
                body, snapshot = (
                    self.authentic(data, b"HFMF", "manifest", 64),
                    blake3(data).digest(),
                )
                identity = self.identities[body["identity"]]
                require(identity["client"] == body["client"], "signed by another client")
                signed = b"holdfast/1/manifest-signature" + data[8:-64]
                Ed25519PublicKey.from_public_bytes(identity["sign_key"]).verify(data[-64:], signed)
                same = {"snapshot": snapshot, "client": body["client"], "seq": body["seq"]}
                require(not commit or commit == commit | same, "not what the journal names")
                if snapshot not in gone:
                    found[snapshot.hex()] = (body, commit)
            except BROKEN as damage:
                of = f" ({commit['client']} {commit['snapshot'].hex()})" if commit else ""
                self.tell("damaged", name + of, damage)
        return found

    def refs(self, name: str, depth: int = 0) -> set[bytes]:
        """Return the whole list of a refs object: its header must follow from its ids."""
        data = self.read(name)
        kind, base, added = data[5], data[64:90], int.from_bytes(data[128:136], "little")
        ids = [data[i : i + 32] for i in range(144, len(data) - 32, 32)]
        new, old, before = set(ids[:added]), set(ids[added:]), set[bytes]()
        require(depth <= 16 and (kind == 2 or (base == bytes(26) and not old)), "kind, or depth")
        if kind == 2:
            before = self.refs(self.name("refs", base.decode("ascii")), depth + 1)
        require(before.isdisjoint(new) and before.issuperset(old), "difference to another base")
        whole, base_set = before - old | new, set_hash(before) if kind == 2 else ZERO
        head = struct.pack("<4sBBH16s", b"HFRF", 1, 2 if kind == 2 else 1, 0, self.keys.domain)
        head += struct.pack("<32sQ26s6x32s", set_hash(whole), len(whole), base, base_set)
        head += struct.pack("<QQ", len(new), len(old)) + b"".join(sorted(new) + sorted(old))
        require(data == head + blake3(head).digest(), "header, order, refs_set or hash differs")
        return whole

    def index(self) -> None:
        """Find every copy of every chunk, oldest pack first."""
        for pack in self.names("packs"):
            try:
                entries = self.by_footer(pack)
            except BROKEN as damage:
                self.tell("damaged", pack, damage)
                entries = list(self.by_frames(self.read(pack)))
            for entry in entries:
                self.copies.setdefault(entry[0], []).append((pack, entry))

    def by_footer(self, pack: str) -> list[tuple[Any, ...]]:
        """Return the footer's entries, when header, frames and footer fit together."""
        size = os.path.getsize(os.path.join(self.root, pack))
        digest, length, magic = struct.unpack("<32sI4s", self.read(pack, size - 40))
        require(magic == b"HFPE" and 88 <= length <= size - 64 <= 64 * MIB, "pack without its end")
        header, footer = self.read(pack, 0, 24), self.read(pack, size - 40 - length, length)
        require(blake3(header + footer).digest() == digest, "hash of the footer differs")
        entries = list(struct.iter_unpack("<32s32sIIIB3s", footer[8:]))
        require(header == b"HFPK\1\0\0\0" + self.keys.domain, "header")
        require(footer[:8] == struct.pack("<4sI", b"HFFT", len(entries)), "unknown footer")
        require(len({entry[0] for entry in entries}) == len(entries) <= 65536, "an id stands twice")
        ends = list(accumulate((48 + entry[3] for entry in entries), initial=24))
        offsets = [entry[2] - 48 for entry in entries if entry[6] == bytes(3)]
        require(ends == [*offsets, size - 40 - length], "frames do not tile the pack")
        return entries

    def by_frames(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """Yield what stands in a pack with a torn footer: wherever a frame's check holds."""
        for match in re.finditer(b"(?s)HFFR(?=(.{4})(.{32}))", data):
            length, chunk_id = int.from_bytes(match[1], "little"), match[2]
            if data[match.start() : match.start() + 48] == frame_of(chunk_id, length):
                yield chunk_id, None, match.start() + 48, length

    def open_first(self, chunk_id: bytes, kind: int) -> bytes:
        """Return the plaintext of the first copy of a chunk that opens."""
        for pack, (_, storage_hash, offset, length, *rest) in self.copies.get(chunk_id, []):
            try:
                framed = self.read(pack, offset - 48, 48 + length)
                plaintext = self.keys.open(chunk_id, kind, framed[48:])
            except BROKEN as damage:
                self.tell("damaged", f"{pack} chunk {chunk_id.hex()}", damage)
                continue
            says = [blake3(framed[48:]).digest(), int.from_bytes(framed[56:60], "little"), kind]
            is_same = storage_hash is None or [storage_hash, *rest[:2]] == says
            if not is_same or framed[:48] != frame_of(chunk_id, length):
                self.tell("damaged", f"{pack} chunk {chunk_id.hex()}", "frame or footer differs")
            return plaintext
        raise Damage(f"no good copy of chunk {chunk_id.hex()}")


class Tree:
    """Walks the tree of one snapshot, and restores what is wanted of it."""

    def __init__(self, store: Store, body: dict[str, Any], wanted: bytes) -> None:
        self.store, self.body, self.wanted = store, body, wanted
        self.reached, self.links, self.is_whole, self.is_met = set[bytes](), {}, True, False
        self.left, self.groups = {k: body[k] for k in ("files", "dirs", "bytes")}, set[bytes]()

    def tell(self, kind: str, path: bytes, why: object) -> None:
        self.store.tell(kind, repr(os.fsdecode(path)), why)

    def bytes_of(self, extent: Extent, kind: int) -> bytes:
        plaintext = self.store.chunk(extent.chunk, kind)
        require(extent.offset + extent.length <= len(plaintext), "extent outside its chunk")
        return plaintext[extent.offset : extent.offset + extent.length]

    def extent(self, at: Extent, chunk: bytes, offset: int, length: int) -> Extent:
        """Return an extent that the page or block `at` names: ZERO a hole, ONES its own chunk."""
        require(offset >= 0 and length >= 1, "extent before its chunk, or empty")
        require(chunk != ZERO or offset == 0, "hole with an offset")
        require(chunk != ONES or offset + length <= at.offset, "extent not before its own page")
        chunk = at.chunk if chunk == ONES else chunk
        self.reached |= {chunk} - {ZERO}
        return Extent(chunk, offset, length)

    def pages(self, extents: list[Extent], path: bytes) -> Iterator[Entry]:
        """Yield the entries of a directory; of damaged pages none, and that is told."""
        last = b""
        for extent in extents:
            try:
                entries = self.page(extent)
                require(last < entries[0].name, "pages not sorted")
            except BROKEN as damage:
                self.is_whole = False
                self.tell("damaged", path + b"/ (a page after " + last + b")", damage)
                continue
            last = entries[-1].name
            yield from entries

    def page(self, at: Extent) -> list[Entry]:
        data = self.bytes_of(at, TREE)
        magic, stat_len, count, content_len = struct.unpack_from("<8sIII", data)
        ids_at, ids_end = 20 + stat_len, 20 + stat_len + 32 * count
        require(magic == b"HFPG\1\0\0\0" and len(data) == ids_end + content_len, "unknown page")
        ids = [data[i : i + 32] for i in range(ids_at, ids_end, 32)]
        used, entries, chunks = set[int](), list[Entry](), [*ids, ONES, ZERO]

        def extents(flat: list[int]) -> list[Extent]:
            triples = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
            require(all(-2 <= index < count for index, _, _ in triples), "extent of no chunk")
            used.update(index for index, _, _ in triples)
            return [self.extent(at, chunks[index], *part) for index, *part in triples]

        owners, contents = body_of(data[ids_end:])
        for stats, content in zip(body_of(data[20:ids_at]), contents, strict=True):
            owner, content_id, flat, more = content
            extra = dict(more or {})
            extra["xattr_blocks"] = extents(extra.get("xattr_blocks", []))
            entry = Entry(*stats, owners[owner], content_id, extents(flat), extra)
            self.check(entry)
            require(not entries or entries[-1].name < entry.name, "names not sorted")
            entries.append(entry)
        require(len(used - {-1, -2}) == len(set(ids)) == count, "an id twice, or never named")
        return entries

    def check(self, entry: Entry) -> None:
        name, kind, extra = entry.name, entry.kind, entry.extra
        require(type(name) is bytes and 1 <= len(name) <= 255, "name")
        require(name not in (b".", b"..") and not set(b"\0/") & set(name), "forbidden name")
        require(all(type(n) is int for n in entry[1:8]) and entry.size >= 0, "number")
        require(FILE <= kind <= BLOCK and 0 <= entry.mode <= 0o7777, "unknown type or mode")
        require(0 <= entry.flags < 8 and (kind <= DIRECTORY or not entry.extents), "flag, content")
        require(len(entry.content_id) in ((0, 32) if kind == FILE else (0,)), "content id")
        require(extra.keys() <= KEYS["extra"] and extra.get("spill", 1) in (1, 2), "extra")
        require((kind == SYMLINK) == ("target" in extra), "target")

    def block(self, at: Extent, kind: int) -> bytes:
        data = self.bytes_of(at, TREE)
        header = struct.pack("<4sBBHI", b"HFBK", 1, kind, 0, len(data) - 12)
        require(data[:12] == header, "unknown block")
        return data[12:]

    def content(self, entry: Entry) -> list[Extent]:
        """Return the extents of a file's content, or of a directory's pages."""
        extents = entry.extents
        for _ in range(entry.extra.get("spill", 0)):
            bodies = [(at, self.block(at, 1)) for at in extents]
            records = [(at, r) for at, body in bodies for r in struct.iter_unpack("<32sIQ", body)]
            extents = [self.extent(at, *record) for at, record in records]
        if entry.kind == FILE and not entry.flags & SKIPPED:
            require(sum(extent.length for extent in extents) == entry.size, "lengths miss the size")
        return extents

    def xattrs(self, entry: Entry) -> list[tuple[bytes, bytes]]:
        in_blocks = [body_of(self.block(at, 2)) for at in entry.extra["xattr_blocks"]]
        pairs = sum(in_blocks, entry.extra.get("xattrs", []))
        require([n for n, _ in pairs] == sorted({n for n, _ in pairs}), "attributes not sorted")
        return pairs

    def count(self, entry: Entry, path: bytes) -> None:
        """End the walk where the tree holds more than its manifest says."""
        if entry.flags & IMPLIED:
            is_above = any(p.startswith(path + b"/") for p in self.body["paths"])
            require(is_above and entry.kind == DIRECTORY, "implied, and above no path")
        else:
            self.left["dirs" if entry.kind == DIRECTORY else "files"] -= 1
        group = entry.extra.get("link")
        if entry.kind == FILE and not entry.flags & SKIPPED and group not in self.groups:
            self.left["bytes"] -= entry.size
        self.groups |= {group} - {None}
        require(min(self.left.values()) >= 0, "the tree holds more than its manifest says")

    def restore(self, target: int) -> None:
        """Walk everything, depth first; make what is wanted, and the directories above it."""
        root = [self.extent(Extent(ONES, 0, 0), *part) for part in self.body["tree"]]
        stack: list[Any] = [(b"", target, None, self.pages(root, b""))]
        while stack:
            path, folder, entry, entries = stack[-1]
            child = next(entries, None)
            if child is None:
                stack.pop()
                if entry and folder >= 0:
                    self.finish(folder, path, entry)
                continue
            at, below, content = path + b"/" + child.name, -1, []
            self.count(child, at)
            require(len(stack) <= 4096, "a directory deeper than 4,096")
            is_in = (at + b"/").startswith(self.wanted + b"/")
            is_above = child.kind == DIRECTORY and self.wanted.startswith(at + b"/")
            self.is_met |= is_in
            try:
                content = self.content(child)
                if folder >= 0 and (is_in or is_above) and not child.flags & SKIPPED:
                    below = self.make(folder, at, child, content, target)
            except OSError as error:
                self.tell("not restored", at, error)
            except BROKEN as damage:
                self.is_whole &= child.kind == FILE and not child.extra.get("spill")
                self.tell("damaged", at, damage)
            if child.kind == DIRECTORY:
                stack.append((at, below, child, self.pages(content, at)))

    def make(self, folder: int, path: bytes, entry: Entry, content: list[Extent], top: int) -> int:
        """Make one entry; return a directory's descriptor, which stays open for its children."""
        name, extra = entry.name, entry.extra
        same = (extra.get("link"), entry.kind, entry.size, entry.mtime_ns, entry.content_id)
        if same in self.links:
            *above, first = self.links[same].split(b"/")[1:]
            source = os.dup(top)
            for part in above:
                source, closed = os.open(part, FOLDER, dir_fd=source), source
                os.close(closed)
            os.link(first, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            os.close(source)
            return -1
        if entry.kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=folder)
            return os.open(name, FOLDER, dir_fd=folder)
        if entry.kind == FILE:
            self.write(folder, entry, content)
        elif entry.kind == SYMLINK:
            os.symlink(extra["target"], name, dir_fd=folder)
        else:
            os.mknod(name, 0o600 | NODES[entry.kind], extra.get("device", 0), dir_fd=folder)
        self.finish(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder), path, entry)
        if extra.get("link"):
            self.links[same] = path
        return -1

    def write(self, folder: int, entry: Entry, content: list[Extent]) -> None:
        """Write one file and keep it only if every chunk, and its content id, is right."""
        flags, hasher = os.O_WRONLY | os.O_CREAT | os.O_EXCL, blake3(key=self.store.keys.content_id)
        with open(os.open(entry.name, flags, 0o600, dir_fd=folder), "wb") as file:
            try:
                for part in content:
                    hole = part.chunk == ZERO
                    file.seek(part.length, os.SEEK_CUR) if hole else file.write(data := ...)
                file.truncate(entry.size)
            except BROKEN:
                os.unlink(entry.name, dir_fd=folder)
                raise

    def finish(self, fd: int, path: bytes, entry: Entry) -> None:
        """Set owner, attributes, mode and times through the descriptor, and close it."""
        handle, times = f"/proc/self/fd/{fd}", (entry.mtime_ns, entry.mtime_ns)
        steps = [partial(os.chown, handle, *entry.owner[:2])]
        steps += [partial(os.setxattr, handle, *pair) for pair in self.xattrs(entry)]
        if entry.kind != SYMLINK:
            steps.append(partial(os.chmod, handle, entry.mode))
        steps.append(partial(os.utime, handle, ns=times))
        if entry.flags & IMPLIED:
            steps = [partial(os.chmod, handle, 0o755)]
        for step in steps:
            try:
                step()
            except BROKEN as error:
                self.tell("not exact", path, error)
        os.close(fd)
