"""Records of the store's journal (docs/format.md): what the catalog must not know alone."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from holdfast_contract.errors import InvalidInput, UnsupportedVersion
from holdfast_contract.format.layout import Buffer, Bytes16, Bytes32, Count, Number, StrictDecoder

_WHAT: Final = "journal record"
Ulid = Annotated[str, msgspec.Meta(min_length=26, max_length=26)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    time_ns: Count


class StoreMade(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First record of every store."""

    store_id: Bytes16


class DomainStored(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This domain record counts."""

    domain: Bytes16
    name: str
    object: Ulid
    revision: Number


class IdentityStored(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This identity record counts."""

    domain: Bytes16
    client: str
    object: Ulid
    identity: Bytes32


class Commit(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A snapshot stands."""

    domain: Bytes16
    client: str
    snapshot: Bytes32
    seq: Number
    manifest: Ulid
    refs: Ulid


class _OfSnapshot(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    domain: Bytes16
    snapshot: Bytes32


class Forget(_OfSnapshot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To the trash."""


class Undelete(_OfSnapshot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Back from the trash."""


class Purge(_OfSnapshot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gone."""


class Pin(_OfSnapshot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kept whatever a policy says."""


class Unpin(_OfSnapshot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kept as policies say."""


class Tag(_OfSnapshot, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tags that count."""

    tags: tuple[str, ...]


class Damaged(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This copy of a chunk is damaged; `object` is the ULID of its pack."""

    domain: Bytes16
    chunk: Bytes32
    object: Ulid
    offset: Count


class Quarantine(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this uploader sent since then is not believed."""

    domain: Bytes16
    client: str
    since_ns: Count


class Deletion(_Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """These objects are about to be deleted."""

    objects: tuple[str, ...]


JournalRecord: TypeAlias = (
    StoreMade
    | DomainStored
    | IdentityStored
    | Commit
    | Forget
    | Undelete
    | Purge
    | Pin
    | Unpin
    | Tag
    | Damaged
    | Quarantine
    | Deletion
)

_TYPES: Final[dict[str, type[JournalRecord]]] = {
    "store": StoreMade,
    "domain": DomainStored,
    "identity": IdentityStored,
    "commit": Commit,
    "forget": Forget,
    "undelete": Undelete,
    "purge": Purge,
    "pin": Pin,
    "unpin": Unpin,
    "tag": Tag,
    "damaged": Damaged,
    "quarantine": Quarantine,
    "deletion": Deletion,
}
_NAMES: Final = {shape: name for name, shape in _TYPES.items()}
_DECODERS: Final = {name: StrictDecoder(shape, _WHAT) for name, shape in _TYPES.items()}
_PAIR: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode_record(record: JournalRecord) -> bytes:
    """Return a record as it stands in a journal object."""
    data = _ENCODER.encode((_NAMES[type(record)], record))
    assert decode_record(data) == record
    return data


def decode_record(data: Buffer) -> JournalRecord:
    """Return what a record says.

    Raises:
        InvalidInput: not a record.
        UnsupportedVersion: a type that this version does not know.
    """
    try:
        name, body = _PAIR.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidInput(f"{_WHAT}: {exc}") from exc
    if name not in _DECODERS:
        raise UnsupportedVersion(f"{_WHAT}: type {name[:40]!r} is unknown")
    record: JournalRecord = _DECODERS[name].decode(body)
    return record
