"""Names of objects: what they are, whose, and a ULID that is used once."""

from __future__ import annotations

from typing import Final

from holdfast_contract.errors import InvalidInput
from holdfast_contract.ids import DomainId, ObjectName, is_ulid
from holdfast_server.catalog.schema import ObjectKind

FOLDERS: Final = {
    ObjectKind.DOMAIN: "domains",
    ObjectKind.IDENTITY: "identities",
    ObjectKind.PACK: "packs",
    ObjectKind.REFS: "refs",
    ObjectKind.MANIFEST: "manifests",
}
_KINDS: Final = {folder: kind for kind, folder in FOLDERS.items()}
_DIGITS: Final = 16


def object_name(kind: ObjectKind, domain: DomainId, ulid: str) -> ObjectName:
    """Return the name of an object."""
    return ObjectName(f"{FOLDERS[kind]}/{domain.hex()}/{ulid}")


def journal_name(number: int) -> ObjectName:
    """Return the name of a journal object; numbers begin at 1."""
    return ObjectName(f"journal/{number:0{_DIGITS}d}")


def kind_of_folder(folder: str) -> ObjectKind:
    """Return which objects lie in `folder`.

    Raises:
        InvalidInput: none do.
    """
    if folder not in _KINDS:
        raise InvalidInput(f"no objects are kept under {folder[:40]!r}")
    return _KINDS[folder]


def pack_ulid(name: str, domain: DomainId) -> str | None:
    """Return the ULID of a pack of this domain, None where `name` is no such name."""
    ulid = name.rpartition("/")[2]
    is_pack = is_ulid(ulid) and name == object_name(ObjectKind.PACK, domain, ulid)
    return ulid if is_pack else None
