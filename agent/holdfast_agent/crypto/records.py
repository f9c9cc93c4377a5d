"""Manifests, identity and domain records with their keys: made here, believed only from here.

Every reader checks MAC (and signature) over the received bytes before it looks at the body.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from holdfast_agent.crypto.identity_keys import IdentityKey, verify_signature
from holdfast_agent.crypto.keys import DomainKeys
from holdfast_contract.errors import Damaged, HoldfastError, WrongKey
from holdfast_contract.format.domain import (
    DomainBody,
    decode_domain_body,
    domain_mac_input,
    encode_domain,
    encode_domain_body,
    split_domain,
)
from holdfast_contract.format.identity import (
    IdentityBody,
    decode_identity_body,
    encode_identity,
    encode_identity_body,
    identity_hash,
    identity_mac_input,
    split_identity,
)
from holdfast_contract.format.layout import Buffer
from holdfast_contract.format.manifest import (
    ManifestBody,
    decode_manifest_body,
    encode_manifest,
    encode_manifest_body,
    manifest_mac_input,
    manifest_signature_input,
    split_manifest,
)

_Body = TypeVar("_Body", ManifestBody, IdentityBody, DomainBody)
_Result = TypeVar("_Result")


class SignedManifest(NamedTuple):
    """A manifest and the identity record whose key signed it, both verified."""

    body: ManifestBody
    identity: IdentityBody


def sign_manifest(body: ManifestBody, keys: DomainKeys, identity: IdentityKey) -> bytes:
    """Return the stored manifest: body, MAC, signature.

    Raises:
        InvalidInput, TooLarge: no reader would accept this body.
        WrongKey: the body is of another domain.
    """
    _require_domain(body, keys)
    data = encode_manifest_body(body)
    mac = _mac(keys, manifest_mac_input(data))
    return encode_manifest(data, mac, identity.sign(manifest_signature_input(data, mac)))


def open_manifest(data: Buffer, keys: DomainKeys, sign_public: bytes) -> ManifestBody:
    """Return what a stored manifest says once its MAC and its signature by `sign_public` fit.

    Raises:
        WrongKey: it is of another domain, or newer than the newest epoch held.
        Damaged: anything else is wrong with it.
    """
    parts = _translated("manifest", lambda: split_manifest(data))
    _check_mac("manifest", keys, parts.mac, parts.signed_by_mac, parts.body, decode_manifest_body)
    if not verify_signature(sign_public, parts.signed_by_key, parts.signature):
        raise Damaged("manifest: the signature does not fit", object="manifest", reason="signature")
    body = _believed("manifest", keys, parts.body, decode_manifest_body)
    if body.epoch_new not in keys.data:
        raise WrongKey(
            f"the key has no epoch {body.epoch_new}, which the snapshot needs",
            hint="take the domain's newest key file",
        )
    return body


def open_signed_manifest(data: Buffer, identity: Buffer, keys: DomainKeys) -> SignedManifest:
    """Return a manifest and its signer's identity record, both verified and fitting each other.

    Raises:
        WrongKey: one of them is of another domain, or newer than the newest epoch held.
        Damaged: anything else is wrong with one of them, or the record is not the manifest's.
    """
    record = open_identity(identity, keys)
    body = open_manifest(data, keys, record.sign_key)
    facts = (body.identity, body.client, body.lineage)
    if facts != (identity_hash(identity), record.client, record.lineage):
        raise Damaged(
            "manifest: signed by another identity than it names",
            object="manifest",
            reason="identity",
        )
    return SignedManifest(body, record)


def seal_identity(body: IdentityBody, keys: DomainKeys) -> bytes:
    """Return the stored identity record.

    Raises:
        InvalidInput, TooLarge: no reader would accept this body.
        WrongKey: the body is of another domain.
    """
    _require_domain(body, keys)
    data = encode_identity_body(body)
    return encode_identity(data, _mac(keys, identity_mac_input(data)))


def open_identity(data: Buffer, keys: DomainKeys) -> IdentityBody:
    """Return what a stored identity record says once its MAC fits.

    Raises:
        WrongKey: it is of another domain.
        Damaged: anything else is wrong with it.
    """
    what = "identity record"
    parts = _translated(what, lambda: split_identity(data))
    _check_mac(what, keys, parts.mac, parts.signed_by_mac, parts.body, decode_identity_body)
    return _believed(what, keys, parts.body, decode_identity_body)


def seal_domain(body: DomainBody, keys: DomainKeys) -> bytes:
    """Return the stored domain record.

    Raises:
        InvalidInput, TooLarge, UnsupportedVersion: no reader would accept this body.
        WrongKey: the body is of another domain, or its check values are not these keys'.
    """
    if not keys.matches(body):
        raise WrongKey("the domain record does not have this key's check values")
    data = encode_domain_body(body)
    return encode_domain(data, _mac(keys, domain_mac_input(data)))


def open_domain(data: Buffer, keys: DomainKeys) -> DomainBody:
    """Return what a stored domain record says once its MAC and check values fit.

    Raises:
        WrongKey: it is of another domain, or the keys at hand are not the domain's.
        Damaged: anything else is wrong with it.
    """
    what = "domain record"
    parts = _translated(what, lambda: split_domain(data))
    _check_mac(what, keys, parts.mac, parts.signed_by_mac, parts.body, decode_domain_body)
    body = _believed(what, keys, parts.body, decode_domain_body)
    if not keys.matches(body):
        raise WrongKey("the key at hand is not the domain's", hint=_WRONG_KEY_HINT)
    return body


_WRONG_KEY_HINT = "compare the key file with `holdfast key check`"


def _mac(keys: DomainKeys, message: bytes) -> bytes:
    return hmac.digest(keys.manifest, message, "sha256")


def _require_domain(body: ManifestBody | IdentityBody, keys: DomainKeys) -> None:
    if body.domain != keys.domain_id:
        raise WrongKey("the record is of another domain than the key")


def _translated(what: str, work: Callable[[], _Result]) -> _Result:
    """Run a decoder of bytes at rest: whatever it refuses is damage of a stored object."""
    try:
        return work()
    except HoldfastError as exc:
        raise Damaged(exc.message, hint=exc.hint, object=what, reason="layout") from exc


def _check_mac(
    what: str,
    keys: DomainKeys,
    mac: Buffer,
    covered: Buffer,
    body: Buffer,
    decode: Callable[[Buffer], _Body],
) -> None:
    if hmac.compare_digest(mac, _mac(keys, bytes(covered))):
        return
    # Only for the message: a body of a domain that these keys are not for is no damage.
    try:
        domain = decode(body).domain
    except HoldfastError:
        domain = keys.domain_id
    if domain != keys.domain_id:
        raise WrongKey(f"{what}: of another domain than the key", hint=_WRONG_KEY_HINT)
    raise Damaged(f"{what}: the MAC does not fit", object=what, reason="mac")


def _believed(
    what: str, keys: DomainKeys, body: Buffer, decode: Callable[[Buffer], _Body]
) -> _Body:
    found = _translated(what, lambda: decode(body))
    if found.domain != keys.domain_id:
        raise Damaged(f"{what}: names another domain", object=what, reason="domain")
    return found
