#!/usr/bin/env python3
"""Restore a Holdfast snapshot from a store directory and a key file, without Holdfast.

Written from docs/format.md alone and in its words: a second opinion on that page and on every
store. Needs Linux and Python 3.11 with the packages blake3, cryptography and zstandard.
Exit: 0 done; 1 failed; 2 wrong usage; 3 restored, but not all of it exactly; 10 not found;
11 the target is in use; 12 wrong key; 13 damage: named, and everything else is restored.
"""
# ruff: noqa: D102, D103 - one file of at most 500 lines: a docstring where the name is not enough

from __future__ import annotations

import argparse
import base64
import errno
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
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIB, DEPTH_MAX, ZERO, ONES = 1 << 20, 4096, bytes(32), b"\xff" * 32
CONTENT, TREE, REPORT = 1, 2, 3  # types of chunks
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK = range(1, 8)  # types of entries
IMPLIED, SKIPPED = 2, 4  # flags of entries
NODES = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
EXAMPLE = "example: format_reader.py /srv/store shop.key restore 3f9a2c /mnt/out --path /data/a"


class Failure(Exception):
    """Ends the program: Failure(exit code, why)."""


class Damage(Exception):
    """Stored bytes are not what the format says; none of them is used."""


# What reading stored bytes raises: too few of them struct.error, an absent object OSError, and so on.
BROKEN = (Damage, struct.error, ArithmeticError, LookupError, TypeError, ValueError, OSError)
BROKEN += (InvalidSignature, InvalidTag, zstandard.ZstdError)


def require(fact: bool, why: str) -> None:
    if not fact:
        raise Damage(why)


def show(name: bytes) -> str:
    """Return a name for people: control characters, and bytes that are not UTF-8, escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = dict(zip(range(0xCC, 0xD4), "BHIQbhiq", strict=True))
FAMILIES = {0xC4: (bytes, 1), 0xC5: (bytes, 2), 0xC6: (bytes, 4), 0xD9: (str, 1), 0xDA: (str, 2)}
FAMILIES |= {0xDB: (str, 4), 0xDC: (list, 2), 0xDD: (list, 4), 0xDE: (dict, 2), 0xDF: (dict, 4)}


def unpack(data: bytes, at: int, depth: int = 0) -> tuple[Any, int]:
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
    pairs = values if family is list else dict(zip(values[::2], values[1::2], strict=True))
    require(len(pairs) == count, "MessagePack key that stands twice")
    return pairs, at


def body_of(data: bytes) -> Any:
    value, end = unpack(data, 0)
    require(end == len(data), "bytes behind a MessagePack value")
    return value


KINDS = {"int": int, "str": str, "bin": bytes, "bool": bool, "list": list, "map": dict}
DOMAIN = """domain:16 name:str revision:int created_ns:int chunker:map small_file_bytes_max:int
    share_references:bool key_check:32 epoch_checks:list wraps:list"""
IDENTITY = """domain:16 client:str lineage:16 heads:list sign_key:32 box_key:32 previous:32
    reason:str time_ns:int"""
MANIFEST = """domain:16 client:str lineage:16 identity:32 seq:int prev:32 parent:32 dataset:16
    known_seq:int known_hash:32 started_ns:int agent_time_ns:int paths:list excludes:list tags:list
    tree:list refs_set:32 refs_count:int epoch_min:int epoch_new:int files:int dirs:int bytes:int
    bytes_new:int result:str consistency:str report:list agent_version:str"""
EXTRA = "xattrs:list link:16 target:bin device:int spill:int xattr_blocks:list"
RECORDS = {
    "store": "store_id:16",
    "domain": "domain:16 name:str object:str revision:int",
    "identity": "domain:16 client:str object:str identity:32",
    "commit": "domain:16 snapshot:32 client:str seq:int manifest:str refs:str",
    "tag": "domain:16 snapshot:32 tags:list",
    "damaged": "domain:16 chunk:32 object:str offset:int",
    "quarantine": "domain:16 client:str since_ns:int",
    "deletion": "objects:list",
} | dict.fromkeys(("forget", "undelete", "purge", "pin", "unpin"), "domain:16 snapshot:32")


def check(value: Any, table: str, *, some: bool = False) -> None:
    """Raise Damage unless a map has the keys of `key:kind key:kind`; kind 16 is 16 bytes."""
    kinds = dict(word.split(":") for word in table.split())
    require(type(value) is dict and value.keys() <= kinds.keys(), "map with an unknown key")
    require(some or len(value) == len(kinds), "map without a key")
    for key in value:
        right = KINDS.get(kinds[key], bytes)
        require(type(value[key]) is right, f"'{key}' of another type")
        require(
            right in KINDS or not kinds[key].isdigit() or len(value[key]) == int(kinds[key]), key
        )


class Keys:
    """What the key file holds, and what follows from it."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, encoding="ascii") as file:
                word, domain, material = file.read(1 << 17).removesuffix("\n").split(" ")
            self.domain, raw = bytes.fromhex(domain), base64.b64decode(material, validate=True)
            (count,) = struct.unpack_from("<H", raw, 32)
            epochs = dict(struct.unpack_from("<I32s", raw, 34 + 36 * i) for i in range(count))
            digest = blake3(b"holdfast/1/key-material" + self.domain + raw[:-8]).digest()
            require(word == "holdfast-key-1" and domain == self.domain.hex(), "first words")
            require(len(domain) == 32 and 1 <= len(epochs) <= 1024 and 0 not in epochs, "numbers")
            require(len(raw) == 42 + 36 * len(epochs) and list(epochs) == sorted(epochs), "length")
            require(digest[:8] == raw[-8:], "check")
        except BROKEN as error:
            raise Failure(12, f"{path}: no key file, or a damaged one ({error})") from error
        uses = ("chunk-id", "content-id", "manifest", "key-check")
        keys = [self.derive(raw[:32], use) for use in uses]
        self.chunk_id, self.content_id, self.manifest, self.key_check = keys
        self.data = {e: self.derive(secret, "data", e) for e, secret in epochs.items()}

    def derive(self, secret: bytes, use: str, epoch: int | None = None) -> bytes:
        info = b"holdfast/1/" + use.encode() + (b"" if epoch is None else struct.pack("<I", epoch))
        return HKDF(algorithm=SHA256(), length=32, salt=self.domain, info=info).derive(secret)

    def open(self, chunk_id: bytes, kind: int, sealed: bytes) -> bytes:
        """Return the plaintext of a sealed chunk that was asked for by this id and type."""
        head = struct.unpack("<4s4BI16s32s", sealed[:60])
        magic, version, suite, kind_is, flags, epoch, salt, com = head
        require((magic, version, suite, kind_is) == (b"HFCK", 1, 1, kind), "header, or its type")
        require(flags in (0, 1) and epoch in self.data, "unknown flag, or epoch")
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


Copy = namedtuple("Copy", "pack offset length footer")  # footer: (storage_hash, epoch, type), None


def frame_of(chunk_id: bytes, length: int) -> bytes:
    """Return the 48 bytes before a sealed chunk."""
    frame = struct.pack("<4sI32s", b"HFFR", length, chunk_id)
    return frame + blake3(frame).digest()[:8]


def set_hash(ids: set[bytes]) -> bytes:
    return blake3(b"".join(sorted(ids))).digest()


class Store:
    """A store directory, as the holder of one domain's key sees it."""

    def __init__(self, root: str, keys: Keys) -> None:
        self.root, self.keys, self.told = root, keys, set[tuple[str, str, str]]()
        self.is_torn, self.is_proven = False, False
        if not os.path.isdir(os.path.join(root, "journal")):
            raise Failure(10, f"{root} holds no store")
        self.journal = [(k, r) for k, r in self.records() if r.get("domain") == keys.domain]
        self.domains = self.bodies("domain", "domains", b"HFDM", DOMAIN)
        self.identities = self.bodies("identity", "identities", b"HFID", IDENTITY)
        if not self.is_proven:
            raise Failure(12, "the key opens no record of this store: it is another domain's")
        self.copies = dict[bytes, list[Copy]]()
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

    def names(self, folder: str) -> list[str]:
        path = os.path.join(self.root, folder, self.keys.domain.hex())
        ulids = os.listdir(path) if os.path.isdir(path) else []
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
                require(len(data) == 112 + length, "wrong length")
                require(blake3(data[:-32]).digest() == data[-32:], "hash differs")
                records = body_of(data[80:-32])
                require(len(records) == count >= 1, "wrong number of records")
                for kind, record in records:
                    check(record, "time_ns:int " + RECORDS[kind])
            except BROKEN as damage:
                self.tell("damaged", f"journal/{name}", damage)
                self.is_torn = True
                continue
            if (after or (store_id, 1, 1, ZERO)) != (store_id, number, first, before):
                self.tell("damaged", f"journal/{number - 1:016d}", "missing, or exchanged")
                self.is_torn = True
            after = (store_id, number + 1, first + count, blake3(data).digest())
            yield from records

    def authentic(self, data: bytes, magic: bytes, use: bytes, table: str, tail: int = 0) -> Any:
        """Return the body of a manifest or record whose MAC holds; `tail` bytes follow the MAC."""
        header, length = struct.unpack_from("<8sI", data)
        require(header == magic + b"\1\0\0\0" and len(data) == 44 + length + tail, "header")
        mac = hmac.digest(
            self.keys.manifest, b"holdfast/1/" + use + data[8 : 12 + length], "sha256"
        )
        require(hmac.compare_digest(mac, data[12 + length : 44 + length]), "MAC differs")
        self.is_proven, body = True, body_of(data[12 : 12 + length])
        check(body, table)
        require(body["domain"] == self.keys.domain, "body of another domain")
        return body

    def bodies(self, kind: str, folder: str, magic: bytes, table: str) -> dict[bytes, Any]:
        """Return the domain's records of a kind by their BLAKE3; the journal says which count."""
        found, data = {}, b""
        named = [self.name(folder, r["object"]) for k, r in self.journal if k == kind]
        for name in sorted({*named, *(self.names(folder) if self.is_torn else ())}):
            try:
                data = self.read(name)
                found[blake3(data).digest()] = self.authentic(data, magic, kind.encode(), table)
            except BROKEN as damage:
                self.is_proven |= self.keys.key_check in data
                self.tell("damaged", f"{name} (or another domain's key)", damage)
        return found

    def snapshots(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Return (body, commit record) by snapshot id. A torn journal may lack a record."""
        commits = {
            self.name("manifests", r["manifest"]): r for k, r in self.journal if k == "commit"
        }
        gone = {r["snapshot"] for k, r in self.journal if k == "purge"}
        found = {}
        for name in sorted({*commits, *(self.names("manifests") if self.is_torn else ())}):
            commit = commits.get(name, {})
            if commit.get("snapshot") in gone:
                continue
            try:
                data = self.read(name)
                body = self.authentic(data, b"HFMF", b"manifest", MANIFEST, 64)
                identity, snapshot = self.identities[body["identity"]], blake3(data).digest()
                require(identity["client"] == body["client"], "signed by another client")
                signed = b"holdfast/1/manifest-signature" + data[8:-64]
                Ed25519PublicKey.from_public_bytes(identity["sign_key"]).verify(data[-64:], signed)
                same = {"snapshot": snapshot, "client": body["client"], "seq": body["seq"]}
                require(not commit or commit == commit | same, "not what the journal names")
                found[snapshot.hex()] = (body, commit)
            except BROKEN as damage:
                of = f"snapshot {commit['snapshot'].hex()} of {commit['client']}" if commit else "?"
                self.tell("damaged", f"{name} ({of})", damage)
        return found

    def refs(self, name: str, depth: int = 0) -> set[bytes]:
        """Return the whole list of a refs object, through at most 16 differences."""
        data = self.read(name)
        head = struct.unpack_from("<8s16s32sQ26s6s32sQQ", data)
        magic, domain, whole, total, base, reserved, base_set, added, removed = head
        require(magic[:5] + magic[6:] == b"HFRF\1\0\0" and domain == self.keys.domain, "header")
        require(magic[5] in (1, 2) and reserved == bytes(6) and depth <= 16, "kind, or depth")
        require(len(data) == 176 + 32 * (added + removed), "wrong length")
        require(blake3(data[:-32]).digest() == data[-32:], "hash differs")
        ids = [data[i : i + 32] for i in range(144, len(data) - 32, 32)]
        new, old = ids[:added], ids[added:]
        require(new == sorted(set(new)) and old == sorted(set(old)), "ids not ascending")
        before = set[bytes]()
        if magic[5] == 2:
            before = self.refs(self.name("refs", base.decode("ascii")), depth + 1)
            require(set_hash(before) == base_set, "base is another list")
        else:
            require((base, base_set, removed) == (bytes(26), ZERO, 0), "full list with a base")
        require(before.isdisjoint(new) and before.issuperset(old), "difference to another base")
        ids_now = before.difference(old).union(new)
        require(len(ids_now) == total and set_hash(ids_now) == whole, "refs_set differs")
        return ids_now

    def index(self) -> None:
        """Find every copy of every chunk, oldest pack first."""
        for pack in self.names("packs"):
            try:
                found = list(self.by_footer(pack))
            except BROKEN as damage:
                self.tell("damaged", pack, damage)
                found = list(self.by_frames(self.read(pack), pack))
            for chunk_id, copy in found:
                self.copies.setdefault(chunk_id, []).append(copy)

    def by_footer(self, pack: str) -> Iterator[tuple[bytes, Copy]]:
        """Yield what the footer lists, when header, frames and footer fit together."""
        size = os.path.getsize(os.path.join(self.root, pack))
        digest, length, magic = struct.unpack("<32sI4s", self.read(pack, size - 40))
        require(magic == b"HFPE" and 88 <= length <= size - 64 <= 64 * MIB, "pack without its end")
        header, footer = self.read(pack, 0, 24), self.read(pack, size - 40 - length, length)
        require(blake3(header + footer).digest() == digest, "hash of the footer differs")
        count, end = (length - 8) // 80, 24
        require(header == b"HFPK\1\0\0\0" + self.keys.domain and count <= 65536, "header")
        require(footer[:8] == struct.pack("<4sI", b"HFFT", count), "unknown footer")
        entries = list(struct.iter_unpack("<32s32sIIIB3s", footer[8:]))
        require(len({entry[0] for entry in entries}) == count, "an id stands twice")
        for chunk_id, storage_hash, offset, length, epoch, kind, reserved in entries:
            require(offset == end + 48 and reserved == bytes(3), "frames do not tile the pack")
            end = offset + length
            yield chunk_id, Copy(pack, offset, length, (storage_hash, epoch, kind))
        require(end == size - 40 - len(footer), "frames do not tile the pack")

    def by_frames(self, data: bytes, pack: str) -> Iterator[tuple[bytes, Copy]]:
        """Yield what stands in a pack with a torn footer: wherever a frame's check holds."""
        at = data.find(b"HFFR")
        while at >= 0:
            length, chunk_id = struct.unpack("<I32s", data[at + 4 : at + 40].ljust(36, b"\0"))
            is_frame = data[at : at + 48] == frame_of(chunk_id, length)
            if is_frame:
                yield chunk_id, Copy(pack, at + 48, length, None)
            at = data.find(b"HFFR", at + (48 + length if is_frame else 1))

    def open_first(self, chunk_id: bytes, kind: int) -> bytes:
        """Return the plaintext of the first copy of a chunk that opens."""
        for copy in self.copies.get(chunk_id, []):
            name = f"{copy.pack} chunk {chunk_id.hex()}"
            try:
                framed = self.read(copy.pack, copy.offset - 48, 48 + copy.length)
                plaintext = self.keys.open(chunk_id, kind, framed[48:])
            except BROKEN as damage:
                self.tell("damaged", name, damage)
                continue
            epoch = int.from_bytes(framed[56:60], "little")
            is_same = copy.footer in (None, (blake3(framed[48:]).digest(), epoch, kind))
            if not is_same or framed[:48] != frame_of(chunk_id, copy.length):
                self.tell("damaged", name, "its frame or footer says another thing")
            return plaintext
        raise Damage(f"no good copy of chunk {chunk_id.hex()}")


Extent = namedtuple("Extent", "chunk offset length")  # chunk ZERO: a hole
STAT_FIELDS = "name kind mode size mtime_ns ctime_ns inode flags"
Entry = namedtuple("Entry", STAT_FIELDS + " owner content_id extents extra xattr_blocks")


class Tree:
    """Walks the tree of one snapshot, and restores what is wanted of it."""

    def __init__(self, store: Store, body: dict[str, Any], target: int, wanted: bytes) -> None:
        self.store, self.body, self.target, self.wanted = store, body, target, wanted
        self.reached, self.links, self.is_whole, self.is_met = set[bytes](), {}, True, False
        self.seen, self.groups = dict.fromkeys(("files", "dirs", "bytes"), 0), set[bytes]()

    def lose(self, path: bytes, why: object) -> None:
        self.store.tell("damaged", show(path), why)

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
                self.lose(path + b"/ (a page after '" + last + b"')", damage)
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
            owner, content_id, flat, extra = content
            blocks = extents((extra or {}).get("xattr_blocks", []))
            entry = Entry(*stats, owners[owner], content_id, extents(flat), extra or {}, blocks)
            self.check_entry(entry)
            require(not entries or entries[-1].name < entry.name, "names not sorted")
            entries.append(entry)
        require(len(used - {-1, -2}) == len(set(ids)) == count, "an id twice, or never named")
        return entries

    def check_entry(self, entry: Entry) -> None:
        name, kind, extra = entry.name, entry.kind, entry.extra
        require(type(name) is bytes and 1 <= len(name) <= 255, "name")
        require(name not in (b".", b"..") and not set(b"\0/") & set(name), "forbidden name")
        require(all(type(n) is int for n in entry[1:8]) and entry.size >= 0, "number")
        require(FILE <= kind <= BLOCK and 0 <= entry.mode <= 0o7777, "unknown type or mode")
        require(0 <= entry.flags < 8 and (kind <= DIRECTORY or not entry.extents), "flag, content")
        require(len(entry.content_id) in ((0, 32) if kind == FILE else (0,)), "content id")
        check(extra, EXTRA, some=True)
        require(
            extra.get("spill", 1) in (1, 2) and (kind == SYMLINK) == ("target" in extra), "extra"
        )

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
        in_blocks = [body_of(self.block(at, 2)) for at in entry.xattr_blocks]
        pairs = sum(in_blocks, entry.extra.get("xattrs", []))
        require([n for n, _ in pairs] == sorted({n for n, _ in pairs}), "attributes not sorted")
        return pairs
