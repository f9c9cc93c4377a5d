#!/usr/bin/env python3
"""Restore a Holdfast snapshot from a store directory and a key file, without Holdfast.

Written from docs/format.md alone and in its order: a second opinion on that page and on every
store. Needs Linux and Python 3.11 with the packages blake3, cryptography and zstandard.

Exit: 0 done; 1 failed; 2 wrong usage; 3 restored, but not all metadata could be set; 10 not found;
11 the target is in use; 12 wrong key; 13 damage, which is named: everything else is restored.
"""

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

MIB, DEPTH_MAX = 1 << 20, 4096
CONTENT, TREE, REPORT = 1, 2, 3  # types of chunks
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK = range(1, 8)  # types of entries
IMPLIED, SKIPPED = 2, 4  # flags of entries
ZERO, ONES = bytes(32), b"\xff" * 32
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
EXAMPLE = "example: format_reader.py /srv/store shop.key restore 3f9a2c /mnt/out --path /data/a"


class Failure(Exception):  # ends the program: Failure(exit code, why)
    """What cannot go on."""


class Damage(Exception):
    """Stored bytes are not what the format says; none of them is used."""


BROKEN = (Damage, struct.error, OSError)  # a short object makes struct.error, an absent one OSError


def require(fact: bool, why: str) -> None:
    """Raise Damage unless `fact`."""
    if not fact:
        raise Damage(why)


def show(name: bytes) -> str:
    """Return a name for people: control characters, and bytes that are not UTF-8, escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# --- MessagePack: one value, nothing behind it, only the families that the format uses ---------

NUMBERS = dict(zip(range(0xCC, 0xD4), "BHIQbhiq", strict=True))
FAMILIES = {0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xD9: ("str", 1)}
FAMILIES |= {0xDA: ("str", 2), 0xDB: ("str", 4), 0xDC: ("array", 2), 0xDD: ("array", 4)}
FAMILIES |= {0xDE: ("map", 2), 0xDF: ("map", 4)}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
UINT = object()  # the shape of an integer that is not negative


def unpack(data: bytes, at: int, depth: int = 0) -> tuple[Any, int]:
    """Return the value at `at` and the offset behind it."""
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
        family = "map" if tag < 0x90 else "array" if tag < 0xA0 else "str"
        count = tag & (31 if family == "str" else 15)
    else:
        require(tag in FAMILIES, f"MessagePack tag {tag:#x} has no place here")
        family, width = FAMILIES[tag]
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
    require(at + count <= len(data), "MessagePack cut off")
    if family in ("bin", "str"):
        raw = data[at : at + count]
        return (raw if family == "bin" else text(raw)), at + count
    values = []
    for _ in range(count * 2 if family == "map" else count):
        value, at = unpack(data, at, depth + 1)
        values.append(value)
    if family == "array":
        return values, at
    require(all(type(key) is str for key in values[::2]), "MessagePack key that is no text")
    require(len(set(values[::2])) == count, "MessagePack key that stands twice")
    return dict(zip(values[::2], values[1::2], strict=True)), at


def text(raw: bytes) -> str:
    """Return UTF-8 bytes as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damage("text is not UTF-8") from error


def fits(value: Any, shape: Any) -> bool:
    """Tell if a value has a shape: a type, a count of bytes, [each], (one, by, one) or {key: of}."""
    if isinstance(shape, list):
        return type(value) is list and all(fits(v, shape[0]) for v in value)
    if isinstance(shape, tuple):
        return type(value) is list and len(value) == len(shape) and all(map(fits, value, shape))
    if isinstance(shape, dict):
        same = type(value) is dict and value.keys() == shape.keys()
        return same and all(fits(value[key], shape[key]) for key in shape)
    if isinstance(shape, int):
        return type(value) is bytes and len(value) == shape
    return (type(value) is int and value >= 0) if shape is UINT else type(value) is shape


def shaped(data: bytes, shape: Any) -> Any:
    """Return the MessagePack value that `data` is, of that shape."""
    value, end = unpack(data, 0)
    require(end == len(data) and fits(value, shape), "body of an unknown shape")
    return value


# --- Keys and sealed chunks --------------------------------------------------------------------


class Keys:
    """What the key file holds, and what follows from it."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, encoding="ascii") as file:
                word, domain, material = file.read(1 << 17).removesuffix("\n").split(" ")
            self.domain, raw = bytes.fromhex(domain), base64.b64decode(material, validate=True)
            (count,) = struct.unpack_from("<H", raw, 32)
            epochs = [struct.unpack_from("<I32s", raw, 34 + 36 * i) for i in range(count)]
        except FileNotFoundError as error:
            raise Failure(10, f"no key file {path}") from error
        except (ValueError, struct.error) as error:
            raise Failure(12, f"{path} is no key file") from error
        check = blake3(b"holdfast/1/key-material" + self.domain + raw[:-8]).digest()[:8]
        numbers = [number for number, _ in epochs]
        good = word == "holdfast-key-1" and domain == self.domain.hex() and len(domain) == 32
        good = good and len(raw) == 42 + 36 * count and raw[-8:] == check and 1 <= count <= 1024
        if not good or numbers != sorted(set(numbers)) or numbers[0] == 0:
            raise Failure(12, f"{path} is no key file, or a damaged one")
        self.chunk_id, self.content_id, self.manifest, self.check = (
            self.derive(raw[:32], use) for use in ("chunk-id", "content-id", "manifest", "key-check")
        )
        self.data = {e: self.derive(secret, "data", e) for e, secret in epochs}
        self.checks = {e: self.derive(secret, "epoch-check", e) for e, secret in epochs}

    def derive(self, secret: bytes, use: str, epoch: int | None = None) -> bytes:
        """Return HKDF(secret, info) as on the format page."""
        info = b"holdfast/1/" + use.encode() + (b"" if epoch is None else struct.pack("<I", epoch))
        return HKDF(algorithm=SHA256(), length=32, salt=self.domain, info=info).derive(secret)


def open_chunk(keys: Keys, chunk_id: bytes, kind: int, sealed: bytes) -> bytes:
    """Return the plaintext of a sealed chunk that was asked for by this id and type."""
    header = sealed[:60]
    magic, version, suite, kind_is, flags, epoch, salt, com = struct.unpack("<4s4BI16s32s", header)
    require((magic, version, suite) == (b"HFCK", 1, 1) and flags in (0, 1), "unknown chunk header")
    require(kind_is == kind and len(sealed) >= 60 + 9 + 16, "chunk of another type, or cut off")
    require(epoch in keys.data, f"sealed with epoch {epoch}, which the key file lacks")
    context = b"holdfast/1/chunk" + struct.pack("<I", epoch) + chunk_id + salt
    derived = hmac.digest(keys.data[epoch], context, "sha512")
    require(hmac.compare_digest(derived[32:], com), "key commitment differs")
    try:
        aad = header + keys.domain + chunk_id
        inside = AESGCM(derived[:32]).decrypt(bytes(12), sealed[60:], aad)
    except InvalidTag as error:
        raise Damage("authentication tag differs") from error
    plain_len, payload_len = struct.unpack_from("<II", inside)
    used = 8 + payload_len
    exponent = used.bit_length() - 1
    step = 1 << (exponent - exponent.bit_length())
    require(used <= len(inside) == -(-used // step) * step, "wrong padded length")
    require(not any(inside[used:]), "padding is not zero")
    require(1 <= plain_len <= (MIB if kind == TREE else 4 * MIB), "chunk of a forbidden length")
    plaintext = payload = inside[8:used]
    if flags:
        try:  # the declared size is believed only when it is the authenticated one
            declared = zstandard.get_frame_parameters(payload).content_size
            require(declared == plain_len, "zstd frame declares another length")
            plaintext = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Damage("zstd frame does not open") from error
    require(len(plaintext) == plain_len, "length of the plaintext differs")
    same = blake3(bytes([kind]) + plaintext, key=keys.chunk_id).digest() == chunk_id
    require(same, "chunk id differs")
    return plaintext


# --- Packs -------------------------------------------------------------------------------------


def frame_of(chunk_id: bytes, length: int) -> bytes:
    """Return the 48 bytes before a sealed chunk."""
    frame = struct.pack("<4sI32s", b"HFFR", length, chunk_id)
    return frame + blake3(frame).digest()[:8]


def read_footer(data: bytes, pack: str, domain: bytes) -> Iterator[tuple[bytes, Copy]]:
    """Yield the copies that a pack's footer lists, when all of the pack fits together."""
    digest, length, magic = struct.unpack("<32sI4s", data[-40:])
    footer = data[-40 - length : -40]
    require(magic == b"HFPE" and len(footer) == length and len(data) <= 64 * MIB, "no pack's end")
    require(blake3(data[:24] + footer).digest() == digest, "hash of the footer differs")
    require(data[:24] == b"HFPK\1\0\0\0" + domain, "unknown header, or another domain's")
    count = (length - 8) // 80
    require(footer[:8] == struct.pack("<4sI", b"HFFT", count), "unknown footer")
    require(length == 8 + 80 * count and 1 <= count <= 65536, "footer of a wrong length")
    end, seen = 24, set()
    for entry in struct.iter_unpack("<32s32sIIIB3s", footer[8:]):
        chunk_id, storage_hash, offset, length, epoch, kind, reserved = entry
        require(offset == end + 48 and kind in (1, 2, 3) and reserved == bytes(3), "footer entry")
        require(chunk_id not in seen, "an id stands twice")
        end = offset + length
        seen.add(chunk_id)
        yield chunk_id, Copy(pack, offset, length, (storage_hash, epoch, kind))
    require(end == len(data) - 40 - len(footer), "frames do not tile the pack")


def scan_frames(data: bytes, pack: str) -> Iterator[tuple[bytes, Copy]]:
    """Yield the copies in a pack with a torn footer: wherever a frame's check holds."""
    at = data.find(b"HFFR")
    while at >= 0:
        length, chunk_id = struct.unpack("<I32s", data[at + 4 : at + 40].ljust(36, b"\0"))
        if is_frame := data[at : at + 48] == frame_of(chunk_id, length):
            yield chunk_id, Copy(pack, at + 48, length, None)
        at = data.find(b"HFFR", at + (48 + length if is_frame else 1))


class Chunks:
    """Every copy of every chunk of the domain, oldest first; the journal's damaged ones last."""

    def __init__(self, store: Store) -> None:
        self.store, self.copies = store, dict[bytes, list[Copy]]()
        for pack in store.names("packs"):
            try:
                data = store.read(pack)
                try:
                    found = list(read_footer(data, pack, store.keys.domain))
                except (Damage, struct.error) as damage:
                    store.tell("damaged", pack, damage)
                    found = list(scan_frames(data, pack))
            except OSError as error:
                store.tell("damaged", pack, error)
                continue
            for chunk_id, copy in found:
                self.copies.setdefault(chunk_id, []).append(copy)
        for copies in self.copies.values():
            copies.sort(key=lambda copy: (copy.pack, copy.offset) in store.known_damaged)
        self.plaintext = lru_cache(maxsize=24)(self.first_good)

    def first_good(self, chunk_id: bytes, kind: int) -> bytes:
        """Return the plaintext of the first copy that opens."""
        for copy in self.copies.get(chunk_id, []):
            name = f"{copy.pack} chunk {chunk_id.hex()}"
            try:
                framed = self.store.read(copy.pack, copy.offset - 48, 48 + copy.length)
                plaintext = open_chunk(self.store.keys, chunk_id, kind, framed[48:])
            except BROKEN as damage:
                self.store.tell("damaged", name, damage)
                continue
            sealed = framed[48:]
            says = (blake3(sealed).digest(), int.from_bytes(sealed[8:12], "little"), kind)
            if framed[:48] != frame_of(chunk_id, copy.length) or copy.footer not in (None, says):
                self.store.tell("damaged", name, "frame or footer says another thing")
            return plaintext
        raise Damage(f"no good copy of chunk {chunk_id.hex()}")


# --- Tree --------------------------------------------------------------------------------------


class Tree:
    """Reads pages and blocks, and keeps the ids of all chunks that they name."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks, self.reached, self.is_whole = chunks, set[bytes](), True

    def lose(self, name: str, why: object) -> None:
        """Tell damage behind which more of the tree may lie."""
        self.is_whole = False
        self.chunks.store.tell("damaged", name, why)

    def bytes_of(self, extent: Extent, kind: int) -> bytes:
        """Return what an extent names."""
        plaintext = self.chunks.plaintext(extent.chunk, kind)
        require(extent.offset + extent.length <= len(plaintext), "extent outside its chunk")
        return plaintext[extent.offset : extent.offset + extent.length]

    def extent(self, at: Extent, chunk: bytes, offset: int, length: int) -> Extent:
        """Return an extent that the page or block `at` names: ZERO is a hole, ONES its own chunk."""
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
                self.lose(f"directory {show(path) or '/'}, names after '{show(last)}'", damage)
                continue
            last = entries[-1].name
            yield from entries

    def page(self, at: Extent) -> list[Entry]:
        """Return the entries of one page."""
        data = self.bytes_of(at, TREE)
        magic, stat_len, count, content_len = struct.unpack_from("<8sIII", data)
        ids_at, ids_end = 20 + stat_len, 20 + stat_len + 32 * count
        require(magic == b"HFPG\1\0\0\0" and len(data) == ids_end + content_len, "unknown page")
        ids = [data[i : i + 32] for i in range(ids_at, ids_end, 32)]
        stats = shaped(data[20:ids_at], STATS)
        owners, contents = shaped(data[ids_end:], CONTENTS)
        require(len(stats) == len(contents) >= 1, "stat part and content part differ")
        used, entries = set[int](), list[Entry]()

        def extents(flat: list[int]) -> list[Extent]:
            triples = list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
            require(all(-2 <= chunk < count for chunk, _, _ in triples), "extent of no chunk")
            used.update(chunk for chunk, _, _ in triples)
            chunks = [*ids, ONES, ZERO]
            return [self.extent(at, chunks[chunk], *rest) for chunk, *rest in triples]

        for stats_of, (owner, content_id, flat, extra) in zip(stats, contents, strict=True):
            extra = {} if extra is None else extra
            known = type(extra) is dict and all(fits(extra[k], EXTRA.get(k, ())) for k in extra)
            require(known and owner < len(owners), "unknown extra, or owner")
            blocks = extents(extra.get("xattr_blocks", []))
            entry = Entry(*stats_of, owners[owner], content_id, extents(flat), extra, blocks)
            check_entry(entry)
            require(not entries or entries[-1].name < entry.name, "names not sorted")
            entries.append(entry)
        require(len(used - {-1, -2}) == len(set(ids)) == count, "an id twice, or never named")
        return entries

    def block(self, at: Extent, kind: int) -> bytes:
        """Return the body of one block."""
        data = self.bytes_of(at, TREE)
        header = struct.pack("<4sBBHI", b"HFBK", 1, kind, 0, len(data) - 12)
        require(data[:12] == header, "unknown block")
        return data[12:]

    def content(self, entry: Entry) -> list[Extent]:
        """Return the extents of a file's content, or those of a directory's pages."""
        extents = entry.extents
        for _ in range(entry.extra.get("spill", 0)):
            records = b"".join(self.block(at, 1) ...)
        return extents
