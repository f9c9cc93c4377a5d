"""Key wraps: the key material sealed to recovery recipients, and the files people keep for that."""

from __future__ import annotations

import base64
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from holdfast_agent.crypto.armor import decode_base64, decode_hex, parse_domain_id
from holdfast_agent.crypto.keys import (
    DomainKeys,
    KeyMaterial,
    decode_key_material,
    encode_key_material,
)
from holdfast_contract.errors import InvalidInput, UnsupportedVersion, WrongKey
from holdfast_contract.format.domain import WRAP_SUITE, Wrap
from holdfast_contract.ids import DomainId, check_domain_name

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_KEY_BYTES: Final = 32
_EPOCH_NUMBER_MAX: Final = (1 << 32) - 1
_RECIPIENT_WORD: Final = "holdfast-recipient-1"
_PRIVATE_WORD: Final = "holdfast-private-1"
_RECOVERY_WORD: Final = "holdfast-recovery-1"
_RECOVERY_HEAD: Final = """\
{word}
# Recovery file of the domain {name}. Whoever holds it can read every backup of the domain.
# Print it or keep it offline. Lost keys come back with:
#   holdfast key recover --domain {name} --recovery THIS_FILE --key-out FILE
"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a recovery file says."""

    name: str
    """The domain's name."""
    domain_id: DomainId
    key_check: bytes
    """Decides which unwrapped key is right."""
    private_key: bytes = field(repr=False)
    """X25519, 32 bytes."""
    wraps: tuple[Wrap, ...] = ()
    """One or more wraps to that key."""

    @property
    def recipient(self) -> bytes:
        """The public key that the wraps are sealed to."""
        return public_key_of(self.private_key)


def new_private_key() -> bytes:
    """Return a new X25519 private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key_of(private_key: bytes) -> bytes:
    """Return the X25519 public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def _info(domain_id: DomainId, epoch: int, recipient: bytes) -> bytes:
    return b"".join((b"holdfast/1/wrap", domain_id, struct.pack("<I", epoch), recipient))


def wrap_keys(material: KeyMaterial, recipient: bytes) -> Wrap:
    """Return the key material sealed to the X25519 public key `recipient`.

    Raises:
        InvalidInput: `recipient` is no usable public key.
    """
    try:
        public = X25519PublicKey.from_public_bytes(recipient)
        info = _info(material.domain_id, material.newest_epoch, recipient)
        sealed = _SUITE.encrypt(encode_key_material(material), public, info)
    except ValueError as exc:
        raise InvalidInput("the recipient is not a usable X25519 public key") from exc
    return Wrap(recipient=recipient, suite=WRAP_SUITE, epoch=material.newest_epoch, sealed=sealed)


def unwrap_keys(domain_id: DomainId, wrap: Wrap, private_key: bytes) -> KeyMaterial:
    """Return the key material that a wrap holds for the owner of `private_key`.

    A wrap alone does not prove that the key is the domain's: whoever knows a public key can seal
    to it. Compare the key check before believing it.

    Raises:
        WrongKey: not sealed to this key, for this domain, or not sound.
    """
    private = X25519PrivateKey.from_private_bytes(private_key)
    info = _info(domain_id, wrap.epoch, public_key_of(private_key))
    try:
        data = _SUITE.decrypt(wrap.sealed, private, info)
        material = decode_key_material(domain_id, data)
    except (InvalidTag, ValueError, InvalidInput) as exc:
        raise WrongKey("the wrapped key does not open with this private key") from exc
    if material.newest_epoch != wrap.epoch:
        raise WrongKey("the wrapped key is not of the epoch that it names")
    return material


def new_recovery(name: str, material: KeyMaterial) -> tuple[Recovery, Wrap]:
    """Return a recovery file's content with a new private key, and the domain record's wrap."""
    private_key = new_private_key()
    keys = DomainKeys(material)
    recovery = Recovery(name, material.domain_id, keys.key_check, private_key)
    wrap = wrap_keys(material, recovery.recipient)
    return Recovery(name, material.domain_id, keys.key_check, private_key, (wrap,)), wrap


def format_recovery_file(recovery: Recovery) -> str:
    """Return the recovery file's text: printable ASCII lines. It is a secret."""
    rows = [
        ("name", recovery.name),
        ("domain", recovery.domain_id.hex()),
        ("key-check", recovery.key_check.hex()),
        ("private-key", base64.b64encode(recovery.private_key).decode()),
        *(("wrap", _wrap_line(wrap)) for wrap in recovery.wraps),
    ]
    head = _RECOVERY_HEAD.format(word=_RECOVERY_WORD, name=recovery.name)
    return head + "".join(f"{word} {value}\n" for word, value in rows)


def _wrap_line(wrap: Wrap) -> str:
    return f"{wrap.epoch} {base64.b64encode(wrap.sealed).decode()}"


def _parse_wrap_line(text: str, recipient: bytes) -> Wrap:
    epoch, _, sealed = text.partition(" ")
    is_number = epoch.isascii() and epoch.isdigit() and not epoch.startswith("0")
    if not is_number or len(epoch) > 10 or int(epoch) > _EPOCH_NUMBER_MAX:
        raise InvalidInput("recovery file: wrap: its epoch is not a number from 1 to 4294967295")
    return Wrap(
        recipient=recipient,
        suite=WRAP_SUITE,
        epoch=int(epoch),
        sealed=decode_base64(sealed, "recovery file: wrap"),
    )


def parse_recovery_file(text: str) -> Recovery:
    """Return what a recovery file says. The messages of errors show nothing of the private key.

    Raises:
        InvalidInput: not a recovery file, or mistyped.
        UnsupportedVersion: a recovery file of another version.
    """
    rows = [line.strip() for line in text.splitlines()]
    rows = [row for row in rows if row and not row.startswith("#")]
    first = rows[0] if rows else ""
    if first != _RECOVERY_WORD:
        if first.startswith("holdfast-recovery-"):
            raise UnsupportedVersion("this version of recovery files is unknown")
        raise InvalidInput("not a recovery file", hint=f"its first line is {_RECOVERY_WORD}")
    found: dict[str, list[str]] = {}
    for row in rows[1:]:
        word, _, value = row.partition(" ")
        found.setdefault(word, []).append(value.strip())
    once = ("name", "domain", "key-check", "private-key")
    if set(found) != {*once, "wrap"} or any(len(found[word]) != 1 for word in once):
        raise InvalidInput("recovery file: a line is missing, doubled or unknown")
    private_key = decode_base64(found["private-key"][0], "recovery file: private-key")
    if len(private_key) != _KEY_BYTES:
        raise InvalidInput("recovery file: private-key is not 32 bytes")
    return Recovery(
        check_domain_name(found["name"][0]),
        parse_domain_id(found["domain"][0]),
        decode_hex(found["key-check"][0], 32, "recovery file: key-check"),
        private_key,
        tuple(_parse_wrap_line(value, public_key_of(private_key)) for value in found["wrap"]),
    )


def recover(recovery_text: str, more_wraps: Iterable[Wrap] = ()) -> KeyMaterial:
    """Return a domain's keys from its recovery file alone, or newer ones from `more_wraps`.

    Only the file's own key check is believed: a server could offer a wrap of a key that it made.

    Raises:
        InvalidInput, UnsupportedVersion: not a recovery file.
        WrongKey: no wrap opens to the key that the file's key check names.
    """
    return recover_keys(parse_recovery_file(recovery_text), more_wraps)


def recover_keys(recovery: Recovery, more_wraps: Iterable[Wrap] = ()) -> KeyMaterial:
    """Return a domain's keys from what a recovery file says; see `recover`.

    Raises:
        WrongKey: no wrap opens to the key that the key check names.
    """
    mine = [wrap for wrap in more_wraps if wrap.recipient == recovery.recipient]
    found: list[KeyMaterial] = []
    for wrap in (*recovery.wraps, *mine):
        try:
            material = unwrap_keys(recovery.domain_id, wrap, recovery.private_key)
        except WrongKey:
            continue
        if hmac.compare_digest(DomainKeys(material).key_check, recovery.key_check):
            found.append(material)
    if not found:
        raise WrongKey(
            "no wrapped key opens to the one that the key check names",
            hint="the file is damaged, or was changed",
        )
    return max(found, key=lambda material: (material.newest_epoch, len(material.epochs)))


def format_recipient_file(recipient: bytes) -> str:
    """Return the recipient file's text for an X25519 public key."""
    assert len(recipient) == _KEY_BYTES
    return f"{_RECIPIENT_WORD} {recipient.hex()}\n"


def parse_recipient_file(text: str) -> bytes:
    """Return the X25519 public key of a recipient file.

    Raises:
        InvalidInput: not a recipient file, or mistyped.
        UnsupportedVersion: a recipient file of another version.
    """
    value = _one_line(text, _RECIPIENT_WORD, "recipient file")
    return decode_hex(value, _KEY_BYTES, "the recipient")


def format_private_file(private_key: bytes) -> str:
    """Return the text of a recipient's private file. It is a secret."""
    assert len(private_key) == _KEY_BYTES
    return f"{_PRIVATE_WORD} {base64.b64encode(private_key).decode()}\n"


def is_private_file(text: str) -> bool:
    """Tell whether a text is a recipient's private file, of any version, and no recovery file."""
    return text.lstrip().startswith(_PRIVATE_WORD.rstrip("1"))


def parse_private_file(text: str) -> bytes:
    """Return the X25519 private key of a recipient's private file.

    Raises:
        InvalidInput: not such a file, or mistyped.
        UnsupportedVersion: a private file of another version.
    """
    value = _one_line(text, _PRIVATE_WORD, "private file")
    private_key = decode_base64(value, "the private key")
    if len(private_key) != _KEY_BYTES:
        raise InvalidInput("the private key is not 32 bytes")
    return private_key


def _one_line(text: str, word: str, what: str) -> str:
    found, _, value = text.strip().partition(" ")
    if found != word:
        if found.startswith(word.rstrip("1")):
            raise UnsupportedVersion(f"this version of {what}s is unknown")
        raise InvalidInput(f"not a {what}", hint=f"one line that begins with {word}")
    return value
