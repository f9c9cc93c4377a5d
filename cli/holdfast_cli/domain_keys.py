"""Work with key material: new domains, wraps, recovery.

Imports ciphers: commands import this module where they need a key, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from holdfast_agent.crypto.keys import (
    DomainKeys,
    KeyMaterial,
    format_key_file,
    new_key_material,
    parse_key_file,
)
from holdfast_agent.crypto.records import open_domain, open_signed_manifest, seal_domain
from holdfast_agent.crypto.wraps import (
    Recovery,
    format_private_file,
    format_recipient_file,
    format_recovery_file,
    is_private_file,
    new_private_key,
    new_recovery,
    parse_private_file,
    parse_recipient_file,
    parse_recovery_file,
    public_key_of,
    recover_keys,
    wrap_keys,
)
from holdfast_contract.clock import Clock
from holdfast_contract.errors import Conflict, NotFound, UsageError, WrongKey
from holdfast_contract.format.domain import (
    CHUNKER_DEFAULT,
    SMALL_FILE_BYTES_DEFAULT,
    DomainBody,
    EpochCheck,
    Wrap,
    decode_domain_body,
    split_domain,
)
from holdfast_contract.format.manifest import decode_manifest_body, split_manifest
from holdfast_contract.ids import DomainId

_RECIPIENT_DIGITS_MIN = 6


@dataclass(frozen=True)
class NewDomain:
    """A domain before the server knows it."""

    record: bytes
    key_file: str = field(repr=False)
    recovery_file: str = field(repr=False)


def new_domain(
    name: str, recipients: Sequence[str], clock: Clock, *, with_recovery: bool
) -> NewDomain:
    """Return a new domain's first record, key file and (where wanted) recovery file.

    `recipients` are texts of recipient files.

    Raises:
        InvalidInput: one of them is none.
    """
    material = new_key_material()
    wraps = [wrap_keys(material, parse_recipient_file(text)) for text in recipients]
    recovery_file = ""
    if with_recovery:
        recovery, wrap = new_recovery(name, material)
        recovery_file = format_recovery_file(recovery)
        wraps.append(wrap)
    keys = DomainKeys(material)
    body = DomainBody(
        domain=material.domain_id,
        name=name,
        revision=1,
        created_ns=clock.now_ns(),
        chunker=CHUNKER_DEFAULT,
        small_file_bytes_max=SMALL_FILE_BYTES_DEFAULT,
        share_references=True,
        key_check=keys.key_check,
        epoch_checks=tuple(EpochCheck(e, check) for e, check in sorted(keys.epoch_checks.items())),
        wraps=tuple(wraps),
    )
    return NewDomain(seal_domain(body, keys), format_key_file(material), recovery_file)


def new_recipient() -> tuple[str, str]:
    """Return the texts of a new private file and of its recipient file."""
    private_key = new_private_key()
    return format_private_file(private_key), format_recipient_file(public_key_of(private_key))


class OpenedKey:
    """A key file's content, and what can be done with it."""

    def __init__(self, material: KeyMaterial) -> None:
        self._material = material
        self._keys = DomainKeys(material)
        self.domain = material.domain_id.hex()
        """The domain's id, hex."""
        self.epochs = sorted(self._keys.data)
        self.key_check = self._keys.key_check.hex()
        """Public; by it two holders of a key can tell that it is the same."""

    @classmethod
    def of_file(cls, text: str) -> OpenedKey:
        """Return the key of a key file's text.

        Raises:
            InvalidInput, UnsupportedVersion: it is not one.
        """
        return cls(parse_key_file(text))

    @property
    def key_file(self) -> str:
        """The text of its key file."""
        return format_key_file(self._material)

    def check_record(self, record: bytes) -> None:
        """Return when the stored domain record is this key's.

        Raises:
            WrongKey, Damaged: it is not.
        """
        open_domain(record, self._keys)

    def with_recipient(self, record: bytes, recipient_file: str) -> bytes:
        """Return the next revision of a domain record, with one recipient more.

        Raises:
            Conflict: it is one already.
            InvalidInput: not a recipient file.
            WrongKey, Damaged: the record is not this key's.
        """
        body = open_domain(record, self._keys)
        recipient = parse_recipient_file(recipient_file)
        if any(wrap.recipient == recipient for wrap in body.wraps):
            raise Conflict("this recipient can recover the key already")
        return self._next(body, wraps=(*body.wraps, wrap_keys(self._material, recipient)))

    def without_recipient(self, record: bytes, digits: str) -> bytes:
        """Return the next revision of a domain record, without the recipient that begins so.

        Raises:
            NotFound: none begins so, or several do.
            WrongKey, Damaged: the record is not this key's.
        """
        body = open_domain(record, self._keys)
        gone = [wrap for wrap in body.wraps if wrap.recipient.hex().startswith(digits.lower())]
        if len(digits) < _RECIPIENT_DIGITS_MIN or len(gone) != 1:
            raise NotFound(
                f"not one recipient begins with {digits!r}",
                hint="holdfast key recipients list shows them; give 6 digits or more",
            )
        return self._next(body, wraps=tuple(wrap for wrap in body.wraps if wrap not in gone))

    def with_sharing(self, record: bytes, *, share_references: bool) -> bytes:
        """Return the next revision of a domain record, in which replicas share or do not.

        Raises:
            WrongKey, Damaged: the record is not this key's.
        """
        body = open_domain(record, self._keys)
        return self._next(body, share_references=share_references)

    def _next(self, body: DomainBody, **changes: tuple[Wrap, ...] | bool) -> bytes:
        newer = msgspec.structs.replace(body, revision=body.revision + 1, **changes)
        return seal_domain(newer, self._keys)

    def prove(self, manifest: bytes, identity: bytes) -> None:
        """Open a snapshot's manifest, signed by the client of the identity record.

        Raises:
            WrongKey, Damaged: it does not open.
        """
        open_signed_manifest(manifest, identity, self._keys)


def identity_of(manifest: bytes) -> str:
    """Return the hash (hex) of the identity record whose key signed a manifest, as it claims.

    Raises:
        InvalidInput, UnsupportedVersion: it is not a manifest.
    """
    return decode_manifest_body(split_manifest(manifest).body).identity.hex()


def recovered(text: str, domain: str, record: bytes | None) -> OpenedKey:
    """Return the key of a domain from its recovery file, or from a recipient's private file.

    A recovery file is believed by itself; `record`, the server's, only adds newer epochs to it. A
    private file has no key check: the key is the one whose wrap and record the server offers.

    Raises:
        InvalidInput, UnsupportedVersion: neither of the two.
        WrongKey: of another domain, or nothing is wrapped to it.
        UsageError: a private file, and no record.
    """
    body = decode_domain_body(split_domain(record).body) if record is not None else None
    if is_private_file(text):
        return _recovered_by_recipient(parse_private_file(text), domain, record, body)
    recovery = parse_recovery_file(text)
    if recovery.name != domain:
        raise WrongKey(f"the recovery file is of domain {recovery.name}, not {domain}")
    return OpenedKey(recover_keys(recovery, body.wraps if body else ()))


def _recovered_by_recipient(
    private_key: bytes, domain: str, record: bytes | None, body: DomainBody | None
) -> OpenedKey:
    if body is None or record is None:
        raise UsageError(
            "a recipient's private file needs the server, which keeps the wrapped key",
            hint="a recovery file (domain create --recovery-out) works without it",
        )
    mine = tuple(wrap for wrap in body.wraps if wrap.recipient == public_key_of(private_key))
    if not mine:
        raise WrongKey(
            f"domain {domain} has no wrapped key for this private file",
            hint="holdfast key recipients list shows who can recover it",
        )
    recovery = Recovery(body.name, DomainId(body.domain), body.key_check, private_key, mine)
    key = OpenedKey(recover_keys(recovery))
    key.check_record(record)
    return key
