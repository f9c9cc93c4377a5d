#!/usr/bin/env python3
"""Restore a Holdfast snapshot from a store directory and a key file, without Holdfast.

Written from docs/format.md alone: a second opinion on it and on every store. Needs Linux, Python
3.11, blake3, cryptography, zstandard. Exit: 0 done; 1 failed; 2 wrong usage; 3 not all exact; 10
not found; 11 target in use; 12 wrong key; 13 damage: it is named, and all else is restored.
"""

# ruff: noqa: D101, D102, D103 - dense, since the promise is one file of at most 500 lines
# fmt: off
import argparse
import base64
import hmac
import io
import os
import re
import struct
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

EXAMPLE = "example: format_reader.py /srv/store shop.key restore 3f9a2c /mnt/out --path /data/a"
MIB, ZERO, ONES = 1 << 20, bytes(32), b"\xff" * 32  # as chunk ids: a hole; the chunk that names it
CONTENT, TREE, REPORT, IMPLIED, SKIPPED = 1, 2, 3, 2, 4  # types of chunks; flags of entries
FILE, DIRECTORY, SYMLINK, NODES = 1, 2, 3, {4: 0o010600, 5: 0o140600, 6: 0o020600, 7: 0o060600}
FOLDER, HANDLE = os.O_DIRECTORY | os.O_NOFOLLOW, os.O_PATH | os.O_NOFOLLOW
Extent = namedtuple("Extent", "chunk offset length")  # chunk ZERO: a hole
Entry = namedtuple("Entry", "name kind mode size mtime ctime inode flags owner hash extents extra")
# The keys of every map: bodies, then the records of the journal (beside their time_ns).
MAPS = """HFID=domain client lineage heads sign_key box_key previous reason time_ns; HFDM=domain
    name revision created_ns chunker small_file_bytes_max share_references key_check epoch_checks
    wraps; HFMF=domain client lineage identity seq prev parent dataset known_seq known_hash
    started_ns agent_time_ns paths excludes tags tree refs_set refs_count epoch_min epoch_new files
    dirs bytes bytes_new result consistency report agent_version; report=kind rows more;
    extra=xattrs link target device spill xattr_blocks; store=store_id; domain=domain name object
    revision; identity=domain client object identity; deletion=objects; commit=domain client
    snapshot seq manifest refs; damaged=domain chunk object offset; tag=domain snapshot tags;
    quarantine=domain client since_ns; forget undelete purge pin unpin=domain snapshot"""
TABLE = [row.split("=") for row in MAPS.split(";")]
KEYS = {name: set(keys.split()) for names, keys in TABLE for name in names.split()}
ULID = re.compile("[0-9A-HJKMNP-TV-Z]{26}")
# MessagePack tags: values; numbers; and what has a count: (type, the number that follows).
SCALARS = {0xC0: None, 0xC2: False, 0xC3: True} | {n & 0xFF: n for n in range(-32, 128)}
NUMBERS = dict(zip(range(0xCC, 0xD4), "BHIQbhiq", strict=True))
COUNTED: Any = {n: (dict if n < 144 else list if n < 160 else str, "") for n in range(128, 192)}
COUNTED |= {0xC4: (bytes, "B"), 0xC5: (bytes, "H"), 0xC6: (bytes, "I"), 0xD9: (str, "B"),
            0xDA: (str, "H"), 0xDB: (str, "I"), 0xDC: (list, "H"), 0xDD: (list, "I"),
            0xDE: (dict, "H"), 0xDF: (dict, "I")}
BROKEN = (ValueError, struct.error, ArithmeticError, LookupError, TypeError, OSError,
          InvalidSignature, InvalidTag, zstandard.ZstdError)  # what reading wrong bytes raises

def require(fact: bool, why: str) -> None:
    if not fact:
        raise ValueError(why)

def body_of(data: bytes, keys: str = "") -> Any:  # the MessagePack value that `data` is
    stream = io.BytesIO(data)
    def number(code: str) -> int:
        return int(struct.unpack(">" + code, stream.read(struct.calcsize(code)))[0])
    def value(depth: int) -> Any:
        tag = number("B")
        if tag in SCALARS or tag in NUMBERS:
            return SCALARS[tag] if tag in SCALARS else number(NUMBERS[tag])
        kind, code = COUNTED[tag]
        count = number(code) if code else tag & (31 if kind is str else 15)
        if kind in (bytes, str):
            raw = stream.read(count)
            require(len(raw) == count, "MessagePack cut off")
            return raw if kind is bytes else raw.decode("utf-8")
        require(depth < 16, "MessagePack nested too deeply")
        if kind is list:
            return [value(depth + 1) for _ in range(count)]
        found = {value(depth + 1): value(depth + 1) for _ in range(count)}
        require(len(found) == count, "MessagePack key that stands twice")
        return found
    body = value(0)
    require(not stream.read(1), "bytes behind a MessagePack value")
    require(not keys or body.keys() == KEYS[keys], "map with other keys")
    return body

class Keys:  # what the key file holds, and what follows from it
    def __init__(self, line: str) -> None:
        word, domain, material = line.removesuffix("\n").split(" ")
        self.domain, raw = bytes.fromhex(domain), base64.b64decode(material, validate=True)
        epochs = dict(struct.iter_unpack("<I32s", raw[34:-8]))
        check = blake3(b"holdfast/1/key-material" + self.domain + raw[:-8]).digest(8)
        require(word == "holdfast-key-1" and domain == self.domain.hex(), "other first words")
        is_sorted = list(epochs) == sorted(epochs) and raw[32:34] == struct.pack("<H", len(epochs))
        require(check == raw[-8:] and is_sorted and bool(epochs), "damaged")
        self.chunk_id, self.check = self.derive(raw, b"chunk-id"), self.derive(raw, b"key-check")
        self.digest, self.mac = self.derive(raw, b"content-id"), self.derive(raw, b"manifest")
        self.data = {e: self.derive(epochs[e], b"data" + struct.pack("<I", e)) for e in epochs}

    def derive(self, secret: bytes, use: bytes) -> bytes:  # HKDF-SHA-256 with one block of output
        extracted = hmac.digest(self.domain, secret[:32], "sha256")
        return hmac.digest(extracted, b"holdfast/1/" + use + b"\1", "sha256")

    def open(self, chunk_id: bytes, kind: int, sealed: bytes) -> bytes:
        known, flags, epoch, salt, com = struct.unpack("<7sBI16s32s", sealed[:60])
        is_known = known == b"HFCK\1\1" + bytes([kind]) and flags < 2
        require(is_known and epoch in self.data, f"unknown header or type, or no epoch {epoch}")
        context = b"holdfast/1/chunk" + struct.pack("<I", epoch) + chunk_id + salt
        derived = hmac.digest(self.data[epoch], context, "sha512")
        require(hmac.compare_digest(derived[32:], com), "key commitment differs")
        aad = sealed[:60] + self.domain + chunk_id
        inside = AESGCM(derived[:32]).decrypt(bytes(12), sealed[60:], aad)
        plain_len, payload_len = struct.unpack_from("<II", inside)
        used, most = 8 + payload_len, MIB if kind == TREE else 4 * MIB
        exponent = used.bit_length() - 1
        step = 1 << (exponent - exponent.bit_length())
        require(used <= len(inside) == -(-used // step) * step, "wrong padded length")
        require(not any(inside[used:]) and 1 <= plain_len <= most, "padding, or forbidden length")
        plaintext = payload = inside[8:used]
        if flags:  # the size that a frame declares is believed only when authenticated
            declared = zstandard.get_frame_parameters(payload).content_size
            require(declared == plain_len, "zstd frame declares another length")
            plaintext = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
        is_same = blake3(bytes([kind]) + plaintext, key=self.chunk_id).digest() == chunk_id
        require(is_same and len(plaintext) == plain_len, "chunk id, or length, differs")
        return plaintext

class Store:  # a store directory, as the holder of one domain's key sees it
    def __init__(self, root: str, keys: Keys) -> None:
        self.root, self.keys, self.told, self.is_proven = root, keys, dict[str, str](), False
        self.copies, self.chunk = dict[bytes, list[Any]](), lru_cache(maxsize=24)(self.open_first)
        self.journal = [(k, r) for k, r in self.records() if r.get("domain") == keys.domain]
        self.is_torn = bool(self.told)
        domains = self.bodies("domain", "domains", b"HFDM")
        self.identities = self.bodies("identity", "identities", b"HFID")
        sizes = [(body["revision"], body["small_file_bytes_max"]) for body in domains.values()]
        self.small_max = max(sizes, default=(0, 0))[1]
        require(self.is_proven, "the key opens nothing here: it is of another domain")

    def tell(self, kind: str, name: str | bytes, why: object) -> None:  # each finding once
        shown = name if isinstance(name, str) else repr(os.fsdecode(name))
        line = f"{kind}: {shown}: {str(why) or repr(why)}"
        if line not in self.told:
            print(line, file=sys.stderr)
        self.told[line] = kind

    @contextmanager
    def telling(self, name: str | bytes, local: str = "damaged") -> Iterator[None]:
        try:
            yield
        except BROKEN as why:  # ends the block, and no more
            self.tell(local if isinstance(why, OSError) else "damaged", name, why)

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        with open(os.path.join(self.root, name), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def name(self, folder: str, ulid: str) -> str:
        require(ULID.fullmatch(ulid) is not None, "no ULID")
        return f"{folder}/{self.keys.domain.hex()}/{ulid}"

    def names(self, folder: str, kind: str = "", key: str = "object") -> list[str]:
        path = os.path.join(self.root, folder, self.keys.domain.hex())
        ulids = {str(record[key]) for of, record in self.journal if of == kind}
        if os.path.isdir(path) and (self.is_torn or not kind):  # what the journal did not keep
            ulids |= set(os.listdir(path))
        return sorted(self.name(folder, ulid) for ulid in ulids if ULID.fullmatch(ulid))

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        after: Any = None
        for name in sorted(os.listdir(os.path.join(self.root, "journal"))):
            with self.telling(f"journal/{name}"):
                data = self.read(f"journal/{name}")
                head = struct.unpack_from("<8s16sQQI32sI", data)
                magic, store_id, number, first, count, before, length = head
                require(magic == b"HFJN\1\0\0\0" and name == f"{number:016d}", "unknown header")
                require(blake3(data[:-32]).digest() == data[-32:], "hash differs")
                records = body_of(data[80:-32])
                require(len(data) == 112 + length and len(records) == count >= 1, "wrong length")
                require(all(r.keys() == KEYS[kind] | {"time_ns"} for kind, r in records), "keys")
                if (after or (store_id, 1, 1, ZERO)) != (store_id, number, first, before):
                    self.tell("damaged", f"journal/{number - 1:016d}", "missing, or exchanged")
                after = (store_id, number + 1, first + count, blake3(data).digest())
                yield from records

    def authentic(self, data: bytes, magic: bytes, use: bytes, tail: int = 0) -> Any:
        header, length = struct.unpack_from("<8sI", data)
        require(header == magic + b"\1\0\0\0" and len(data) == 44 + length + tail, "header")
        mac = hmac.digest(self.keys.mac, b"holdfast/1/" + use + data[8 : 12 + length], "sha256")
        require(hmac.compare_digest(mac, data[12 + length : 44 + length]), "MAC differs")
        self.is_proven, body = True, body_of(data[12 : 12 + length], magic.decode())
        require(body["domain"] == self.keys.domain, "body of another domain")
        return body

    def bodies(self, kind: str, folder: str, magic: bytes) -> dict[bytes, Any]:  # by their BLAKE3
        found = {}
        for name in self.names(folder, kind):
            with self.telling(f"{name} (or the key is of another domain)"):
                data = self.read(name)
                self.is_proven |= self.keys.check in data
                found[blake3(data).digest()] = self.authentic(data, magic, kind.encode())
        return found

    def snapshots(self) -> dict[str, Any]:  # by id: (body, commit record; {} in a torn journal)
        found, commits = dict[str, Any](), [r for k, r in self.journal if k == "commit"]
        gone = [r["snapshot"] for k, r in self.journal if k == "purge"]
        for name in self.names("manifests", "commit", "manifest"):
            named = [r for r in commits if r["manifest"] == name[-26:]]
            with self.telling(" ".join([name, *(str(r["client"]) for r in named)])):
                data = self.read(name)
                body, digest = self.authentic(data, b"HFMF", b"manifest", 64), blake3(data).digest()
                identity = self.identities.get(body["identity"], {"client": "nobody known"})
                require(identity["client"] == body["client"], f"signed by {identity['client']}")
                signed = b"holdfast/1/manifest-signature" + data[8:-64]
                Ed25519PublicKey.from_public_bytes(identity["sign_key"]).verify(data[-64:], signed)
                require(all(r["snapshot"] == digest for r in named), "not what the journal names")
                found |= {digest.hex(): (body, [*named, {}][0])} if digest not in gone else {}
        return found

    def refs(self, name: str, depth: int = 0) -> set[bytes]:  # the header must follow from the ids
        data = self.read(name)
        kind, base, added = data[5], data[64:90], int.from_bytes(data[128:136], "little")
        ids = [data[i : i + 32] for i in range(144, len(data) - 32, 32)]
        new, old, before, base_set = set(ids[:added]), set(ids[added:]), set[bytes](), ZERO
        require(depth <= 16 and kind in (1, 2), f"{name}: unknown kind, or too long a chain")
        if kind == 2:
            before = self.refs(self.name("refs", base.decode("ascii")), depth + 1)
            base_set = blake3(b"".join(sorted(before))).digest()
        require(before.isdisjoint(new) and before.issuperset(old), f"{name}: of another base")
        whole = before - old | new
        head = struct.pack("<4sBBH16s", b"HFRF", 1, kind, 0, self.keys.domain)
        head += blake3(b"".join(sorted(whole))).digest()
        head += struct.pack("<Q26s6x32s", len(whole), base * (kind - 1), base_set)
        head += struct.pack("<QQ", len(new), len(old)) + b"".join(sorted(new) + sorted(old))
        require(data == head + blake3(head).digest(), f"{name} is not what its ids say")
        return whole

    def index(self) -> None:  # every copy of every chunk, oldest pack first
        for pack in self.names("packs"):
            for find in (self.by_footer, self.by_frames):
                with self.telling(pack):
                    for entry in find(pack):
                        self.copies.setdefault(entry[0], []).append((pack, entry))
                    break

    def by_footer(self, pack: str) -> list[Any]:
        size = os.path.getsize(os.path.join(self.root, pack))
        digest, length, magic = struct.unpack("<32sI4s", self.read(pack, size - 40))
        require(magic == b"HFPE" and 88 <= length <= size - 64 <= 64 * MIB, "pack without its end")
        header, footer = self.read(pack, 0, 24), self.read(pack, size - 40 - length, length)
        require(blake3(header + footer).digest() == digest, "hash of the footer differs")
        entries = list(struct.iter_unpack("<32s32sIIIB3s", footer[8:]))
        start = b"HFPK\1\0\0\0" + self.keys.domain + b"HFFT" + struct.pack("<I", len(entries))
        require(header + footer[:8] == start, "unknown header, or another domain's")
        require(len({entry[0] for entry in entries}) == len(entries) <= 65536, "an id stands twice")
        ends = [24, *(offset + length for _, _, offset, length, *_ in entries)]
        frames = [*(e[2] - 48 for e in entries if e[6] == bytes(3)), size - 40 - len(footer)]
        require(frames == ends, "frames do not tile the pack")
        return entries

    def by_frames(self, pack: str) -> list[Any]:  # wherever a frame's check holds
        data = self.read(pack)
        found = re.finditer(b"(?s)HFFR(?=(.{4})(.{32})(.{8}))", data)
        frames = [f for f in found if blake3(b"HFFR" + f[1] + f[2]).digest(8) == f[3]]
        return [(f[2], None, f.start() + 48, int.from_bytes(f[1], "little")) for f in frames]

    def open_first(self, chunk_id: bytes, kind: int) -> bytes:  # of its copies, one that opens
        for pack, entry in self.copies.get(chunk_id, []):
            with self.telling(f"{pack} chunk {chunk_id.hex()}"):
                offset, length = entry[2:4]
                framed = self.read(pack, offset - 48, 48 + length)
                sealed, epoch = framed[48:], int.from_bytes(framed[56:60], "little")
                plaintext, hashed = self.keys.open(chunk_id, kind, sealed), blake3(sealed).digest()
                says = (chunk_id, hashed, offset, length, epoch, kind, bytes(3))
                frame = struct.pack("<4sI32s", b"HFFR", length, chunk_id)
                frame += blake3(frame).digest(8)
                if framed[:48] != frame or (entry[1] and entry != says):
                    self.tell("damaged", f"{pack} at {offset}", "frame or footer differs")
                return plaintext
        raise ValueError(f"no good copy of chunk {chunk_id.hex()}")

def check(entry: Entry) -> Entry:
    name, kind, extra, is_skipped = entry.name, entry.kind, entry.extra, entry.flags & SKIPPED
    is_name = type(name) is bytes and 1 <= len(name) <= 255 and name not in (b".", b"..")
    require(is_name and not set(b"\0/") & set(name), "forbidden name")
    is_known = all(type(n) is int for n in entry[1:8]) and 1 <= kind <= 7 and entry.size >= 0
    require(is_known and 0 <= entry.mode <= 0o7777 and 0 <= entry.flags < 8, "unknown entry")
    is_odd = bool(entry.flags & IMPLIED) or (kind != FILE and bool(entry.extents))
    require(kind == DIRECTORY or not is_odd, "pages or implied, and no directory")
    require(len(entry.hash) in (0, 32 if kind == FILE and entry.size <= 64 * MIB else 0), "hash")
    is_extra = extra.keys() <= KEYS["extra"] and extra.get("spill", 1) in (1, 2)
    require(is_extra and (is_skipped or (kind == SYMLINK) == ("target" in extra)), "extra")
    return entry

class Tree:  # walks the tree of one snapshot, and restores what is wanted of it
    def __init__(self, store: Store, body: dict[str, Any], wanted: bytes, target: int) -> None:
        self.store, self.body, self.wanted, self.target = store, body, wanted, target
        self.left, self.groups = {k: body[k] for k in ("files", "dirs", "bytes")}, set[bytes]()
        self.left["dirs"] += sum(path.count(b"/") for path in body["paths"])  # the implied ones
        self.reached, self.is_met, self.links = {*body["report"]}, not wanted, dict[Any, Any]()

    def bytes_of(self, extent: Extent, kind: int) -> bytes:
        plaintext = self.store.chunk(extent.chunk, kind)
        require(extent.offset + extent.length <= len(plaintext), "extent outside its chunk")
        return plaintext[extent.offset : extent.offset + extent.length]

    def extent(self, at: Extent, chunk: bytes, offset: int, length: int) -> Extent:
        require(offset >= 0 and length >= 1 and (chunk != ZERO or offset == 0), "no extent")
        require(chunk != ONES or offset + length <= at.offset, "extent not before its own page")
        chunk = at.chunk if chunk == ONES else chunk
        self.reached |= {chunk} - {ZERO}
        return Extent(chunk, offset, length)

    def pages(self, extents: list[Extent], path: bytes) -> Iterator[Entry]:
        last = b""
        for extent in extents:
            with self.store.telling(path + b"/ (a page of names after " + last + b")"):
                entries = self.page(extent)
                require(last < entries[0].name, "pages not sorted")
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
            owner, digest, flat, more = content
            extra = {**(more or {}), "xattr_blocks": extents((more or {}).get("xattr_blocks", []))}
            entry = Entry._make([*stats, owners[owner], digest, extents(flat), extra])
            require(not entries or entries[-1].name < entry.name, "names not sorted")
            entries.append(check(entry))
        require(len(used - {-1, -2}) == len(set(ids)) == count, "an id twice, or never named")
        return entries

    def block(self, at: Extent, kind: int) -> bytes:
        data = self.bytes_of(at, TREE)
        require(data[:12] == struct.pack("<4sBBHI", b"HFBK", 1, kind, 0, len(data) - 12), "block")
        return data[12:]

    def content(self, entry: Entry) -> list[Extent]:  # of a file; of a directory its pages
        extents = list[Extent](entry.extents)
        for _ in range(entry.extra.get("spill", 0)):
            bodies = [(at, self.block(at, 1)) for at in extents]
            records = [(at, r) for at, body in bodies for r in struct.iter_unpack("<32sIQ", body)]
            extents = [self.extent(at, *record) for at, record in records]
        is_read = entry.kind == FILE and not entry.flags & SKIPPED
        require(not is_read or sum(e.length for e in extents) == entry.size, "another size")
        return extents

    def count(self, entry: Entry, path: bytes) -> None:  # ends the walk of a forged tree
        kind, group = entry.kind, entry.extra.get("link")
        self.left["dirs" if kind == DIRECTORY else "files"] -= 1
        if kind == FILE and not entry.flags & SKIPPED and group not in self.groups:
            self.left["bytes"] -= entry.size
        self.groups |= {group} - {None}
        require(min(self.left.values()) >= 0 and path.count(b"/") <= 4096, "too large or too deep")

    def walk(self, path: bytes, folder: int, extents: list[Extent]) -> None:  # folder -1: nowhere
        for entry in self.pages(extents, path):
            at, below, content = path + b"/" + entry.name, -1, list[Extent]()
            self.count(entry, at)
            is_in = (at + b"/").startswith(self.wanted + b"/")
            is_above = entry.kind == DIRECTORY and self.wanted.startswith(at + b"/")
            self.is_met |= is_in
            with self.store.telling(at, "not restored"):
                content = self.content(entry)
                if folder >= 0 and (is_in or is_above) and not entry.flags & SKIPPED:
                    below = self.make(folder, at, entry, content)
            if entry.kind == DIRECTORY:
                self.walk(at, below, content)
            if below >= 0:
                self.finish(below, at, entry)

    def make(self, folder: int, path: bytes, entry: Entry, content: list[Extent]) -> int:
        name, extra, kind = entry.name, entry.extra, entry.kind
        same = (extra.get("link"), kind, entry.size, entry.mtime, entry.hash)
        if same in self.links:
            first, source = self.links[same].split(b"/")[1:], os.dup(self.target)
            for part in first[:-1]:
                source, above = os.open(part, FOLDER, dir_fd=source), source
                os.close(above)
            os.link(first[-1], name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            os.close(source)
            return -1
        if kind == FILE:
            self.write(folder, entry, content)
        elif kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=folder)
        elif kind == SYMLINK:
            os.symlink(extra["target"], name, dir_fd=folder)
        else:
            os.mknod(name, NODES[kind], extra.get("device", 0), dir_fd=folder)
        self.links |= {same: path} if extra.get("link") else {}
        return os.open(name, FOLDER if kind == DIRECTORY else HANDLE, dir_fd=folder)

    def write(self, folder: int, entry: Entry, content: list[Extent]) -> None:
        flags, hasher = os.O_WRONLY | os.O_CREAT | os.O_EXCL, blake3(key=self.store.keys.digest)
        with open(os.open(entry.name, flags, 0o600, dir_fd=folder), "wb") as file:
            try:
                for part in content:
                    data = b"" if part.chunk == ZERO else self.bytes_of(part, CONTENT)
                    file.seek(part.length - len(data), os.SEEK_CUR)
                    file.write(data)
                    hasher.update(data or bytes(part.length if entry.hash else 0))
                file.truncate(entry.size)
                right = [hasher.digest(), b""][: 1 if 0 < entry.size <= self.store.small_max else 2]
                require(entry.hash in right, "content id differs, or is missing")
            except BROKEN:
                os.unlink(entry.name, dir_fd=folder)
                raise

    def finish(self, fd: int, path: bytes, entry: Entry) -> None:  # metadata, by descriptor
        handle, pairs = f"/proc/self/fd/{fd}", list(entry.extra.get("xattrs", []))
        with self.store.telling(path + b" (its attributes)"):
            for at in entry.extra["xattr_blocks"]:
                pairs += body_of(self.block(at, 2))
            require([n for n, _ in pairs] == sorted({n for n, _ in pairs}), "not sorted")
        steps = [partial(os.chown, handle, *entry.owner[:2])]
        steps += [partial(os.setxattr, handle, *pair) for pair in pairs]
        steps += [partial(os.chmod, handle, entry.mode)] if entry.kind != SYMLINK else []
        steps += [partial(os.utime, handle, ns=(entry.mtime, entry.mtime))]
        for step in [partial(os.chmod, handle, 0o755)] if entry.flags & IMPLIED else steps:
            with self.store.telling(path + b": " + step.func.__name__.encode(), "not exact"):
                step()
        os.close(fd)

    def restore(self, commit: Any) -> None:
        sys.setrecursionlimit(20_000)  # directories may lie 4,096 deep
        store, body = self.store, self.body
        with store.telling("report"):
            for chunk_id in body["report"]:
                for name, *why in body_of(store.chunk(chunk_id, REPORT), "report")["rows"]:
                    store.tell("left out by the backup", name, ": ".join(why))
        with store.telling("tree"):
            root = [self.extent(Extent(ONES, 0, 0), *part) for part in body["tree"]]
            self.walk(b"", self.target, root)
        if not self.is_met:
            store.tell("not found", self.wanted, "the snapshot has no such path")
        with store.telling(f"refs {commit.get('refs', '')}"):
            named = [store.name("refs", commit["refs"])] if commit else store.names("refs")
            same = [name for name in named if store.read(name, 24, 32) == body["refs_set"]]
            refs, is_whole = store.refs(same[0]), "damaged" not in store.told.values()
            require(self.reached <= refs and len(refs) == body["refs_count"], "ids are missing")
            require(not is_whole or refs == self.reached, "ids that the tree does not name")

def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("store", help="the store's directory")
    parser.add_argument("key_file", help="the key file of a domain")
    parser.add_argument("command", choices=["list", "restore"])
    parser.add_argument("snapshot", nargs="?", default="", help="an id, or how it begins")
    parser.add_argument("target", nargs="?", help="a new or empty directory")
    parser.add_argument("--path", default="", help="restore this path only, for example /data/a")
    options = parser.parse_args(argv)
    if (options.command == "restore") != bool(options.target):
        parser.error("restore SNAPSHOT TARGET, or list alone")
    try:
        with open(options.key_file, encoding="ascii") as file:
            store = Store(options.store, Keys(file.read(1 << 17)))
    except OSError as why:
        parser.exit(10, f"error: {why}\n")
    except BROKEN as why:
        parser.exit(12, f"error: {options.key_file}: {why}\n")
    found = {k: v for k, v in store.snapshots().items() if k.startswith(options.snapshot)}
    if options.command == "list" or len(found) != 1:
        for snapshot, (body, commit) in found.items():
            with store.telling(f"commit record of {snapshot}"):
                time = datetime.fromtimestamp(commit.get("time_ns", 0) // 10**9, UTC).isoformat()
                facts = [body[key] for key in ("client", "seq", "result", "files")]
                print(snapshot, time, *facts, *(repr(os.fsdecode(path)) for path in body["paths"]))
    if options.command == "restore" and len(found) != 1:
        store.tell("not found", options.snapshot, f"{len(found)} snapshots begin so")
    elif options.command == "restore":
        os.makedirs(options.target, exist_ok=True)
        if os.listdir(options.target):
            parser.exit(11, f"error: {options.target} is not empty\n")
        (body, commit), wanted = found.popitem()[1], os.fsencode(options.path).rstrip(b"/")
        store.index()
        Tree(store, body, wanted, target := os.open(options.target, FOLDER)).restore(commit)
        os.close(target)
    codes = {"damaged": 13, "not found": 10, "not restored": 3, "not exact": 3}
    return max((codes.get(kind, 0) for kind in store.told.values()), default=0)

if __name__ == "__main__":
    sys.exit(main())
