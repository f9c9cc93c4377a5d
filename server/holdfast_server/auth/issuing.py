"""How certificates are made: ECDSA P-256, valid under strict checking (RFC 5280).

Strict is OpenSSL's X509_V_FLAG_X509_STRICT, which Python 3.13 switches on by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast_contract.errors import UsageError

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397
"""The longest that browsers accept (CA/Browser Forum, ballot SC-31)."""
BACKDATED = timedelta(days=1)
"""A client's clock may be behind the server's."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return `key` as unencrypted PEM (PKCS #8); the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Return `names` as a certificate has them, each once: addresses, and the rest as DNS names.

    Raises:
        UsageError: one of them can stand in no certificate.
    """
    return list(dict.fromkeys(_general_name(name) for name in names))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.lower())
    except ValueError as exc:
        raise UsageError(f"{name[:120]!r} can stand in no certificate") from exc


def issue_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Return the certificate of a new authority that may sign servers' certificates only."""
    # Two authorities must not share a name, or clients that know both mix them up.
    number = x509.random_serial_number()
    name = _subject(f"Holdfast CA {number:040x}"[:28])
    builder = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .serial_number(number)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    return builder.sign(key, hashes.SHA256())


def issue_leaf(
    key: ec.EllipticCurvePrivateKey,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    names: Sequence[str],
    now: datetime,
) -> x509.Certificate:
    """Return a server's certificate for `names`, valid 397 days or as long as the authority.

    Raises:
        UsageError: one of `names` can stand in no certificate.
    """
    first, last = authority.not_valid_before_utc, authority.not_valid_after_utc
    if not first <= now <= last:
        # The clock is wrong, or the authority is dead: made for the nearest part of its time.
        now = first + BACKDATED if now < first else last - timedelta(days=LEAF_DAYS)
    until = min(now + timedelta(days=LEAF_DAYS), last)
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_subject("Holdfast server"), authority.subject, key.public_key(), now, until)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName(general_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    return builder.sign(authority_key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
