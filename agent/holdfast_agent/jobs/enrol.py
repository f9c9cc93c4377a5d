"""Becoming and staying known: enrol, correct a record made under a wrong key, accept a history."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.crypto.records import open_domain, open_identity, seal_identity
from holdfast_agent.state.identity import IdentityFiles
from holdfast_agent.state.memory import Memory, Remembered
from holdfast_agent.transport.enrolment import domain_record, enrol, renew_identity
from holdfast_agent.transport.http import HttpClient
from holdfast_contract.clock import Clock
from holdfast_contract.errors import HoldfastError, UsageError, WrongKey
from holdfast_contract.format.domain import DomainBody
from holdfast_contract.format.identity import (
    IdentityBody,
    Reason,
    decode_identity_body,
    encode_identity,
    encode_identity_body,
    identity_hash,
    split_identity,
)
from holdfast_contract.ids import ZERO_HASH, DomainId
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol.control import Backup
from holdfast_contract.protocol.http import EnrolOffer

_log = get_logger(__name__)
_TOKEN_BYTES_MAX = 4096


@dataclass(frozen=True)
class Identity:
    """Who this agent is: its keys, and the record that counts."""

    key: IdentityKey
    record: bytes

    @property
    def hash(self) -> bytes:
        """BLAKE3 of the record."""
        return identity_hash(self.record)

    @property
    def client(self) -> str:
        """`DOMAIN/NAME`, as enrolled."""
        return self.claimed.client

    @property
    def claimed(self) -> IdentityBody:
        """What the record says; its MAC is checked where it matters (`believed`)."""
        return decode_identity_body(split_identity(self.record).body)


def identity_key(files: IdentityFiles) -> IdentityKey:
    """Return the identity's keys, made now when there were none."""
    return IdentityKey(*files.keys_or_new(lambda: IdentityKey.generate().private_bytes()))


def known_identity(files: IdentityFiles) -> Identity | None:
    """Return the identity of the state directory; None before the enrolment ended."""
    record = files.record()
    return Identity(identity_key(files), record) if record is not None else None


def read_token(path: Path | None) -> str:
    """Return the enrolment token.

    Raises:
        UsageError: no file named, or it cannot be read.
    """
    if path is None:
        raise UsageError(
            "this agent is not enrolled and HOLDFAST_ENROL_TOKEN_FILE is not set",
            hint="make a token: holdfast enrol-token create DOMAIN --client DOMAIN/NAME --out FILE",
        )
    try:
        with path.open("rb") as file:
            return file.read(_TOKEN_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read the enrolment token {path}: {exc}") from exc


def enrol_client(
    files: IdentityFiles, client: HttpClient, *, keys: DomainKeys, name: str, clock: Clock
) -> Identity:
    """Enrol by the token that `client` carries, and keep the record.

    An agent with a wrong domain key is enrolled too: it stays connected and says so at each job.
    """
    key = identity_key(files)

    def make_record(offer: EnrolOffer) -> bytes:
        return _sealed(_enrolled_body(offer, key, keys, clock), keys)

    _, record, _ = enrol(client, name=name, sign_key=key.sign_public, make_record=make_record)
    files.keep_record(record)
    return Identity(key, record)


def _enrolled_body(
    offer: EnrolOffer, key: IdentityKey, keys: DomainKeys, clock: Clock
) -> IdentityBody:
    old = _opened(offer.identity, keys)
    return IdentityBody(
        domain=DomainId(offer.domain),
        client=offer.client,
        lineage=old.lineage if old else os.urandom(16),
        heads=(),
        sign_key=key.sign_public,
        box_key=key.box_public,
        previous=identity_hash(offer.identity) if offer.identity else ZERO_HASH,
        reason="key lost" if offer.identity else "enrolled",
        time_ns=clock.now_ns(),
    )


def _opened(record: bytes | None, keys: DomainKeys) -> IdentityBody | None:
    try:
        return open_identity(record, keys) if record else None
    except HoldfastError:
        return None


def _sealed(body: IdentityBody, keys: DomainKeys) -> bytes:
    if body.domain == keys.domain_id:
        return seal_identity(body, keys)
    _log.error("the key file is of another domain", client=body.client)
    # No key at hand can make the MAC: readers will refuse it until the right key renews it.
    return encode_identity(encode_identity_body(body), bytes(32))


def believed_domain(client: HttpClient, keys: DomainKeys) -> DomainBody:
    """Return the domain's settings.

    Raises:
        WrongKey: the key at hand is not the domain's.
    """
    return open_domain(domain_record(client), keys)


def corrected(
    identity: Identity, files: IdentityFiles, client: HttpClient, keys: DomainKeys, clock: Clock
) -> Identity:
    """Return the identity, its record renewed if it was made under a wrong key."""
    if _opened(identity.record, keys) is not None:
        return identity
    if identity.claimed.domain != keys.domain_id:
        raise WrongKey("the key at hand is of another domain than this client")
    return _renewed(identity, files, client, keys, clock, reason="key corrected")


def with_history_accepted(
    identity: Identity,
    files: IdentityFiles,
    client: HttpClient,
    keys: DomainKeys,
    clock: Clock,
    *,
    memory: Memory,
    order: Backup,
) -> Identity:
    """Return the identity; in a new lineage where an administrator accepted another history."""
    remembered = memory.load()
    same = (remembered.seq, remembered.snapshot) == (order.head_seq, order.head)
    if not order.accepted or same or remembered.seq < order.head_seq:
        return identity
    heads = (order.head, remembered.snapshot)
    new = _renewed(identity, files, client, keys, clock, reason="history accepted", heads=heads)
    memory.keep(Remembered(order.head_seq, order.head))
    return new


def _renewed(
    identity: Identity,
    files: IdentityFiles,
    client: HttpClient,
    keys: DomainKeys,
    clock: Clock,
    *,
    reason: Reason,
    heads: tuple[bytes, ...] = (),
) -> Identity:
    old = identity.claimed
    body = IdentityBody(
        domain=old.domain,
        client=old.client,
        lineage=os.urandom(16) if heads else old.lineage,
        heads=heads,
        sign_key=old.sign_key,
        box_key=old.box_key,
        previous=identity.hash,
        reason=reason,
        time_ns=clock.now_ns(),
    )
    record = seal_identity(body, keys)
    renew_identity(client, name=old.client, record=record)
    files.keep_record(record)
    _log.info("identity record renewed", client=old.client, reason=reason)
    return Identity(identity.key, record)
