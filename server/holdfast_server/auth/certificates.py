"""The server's own small certificate authority, made at the first start.

    tls/ca.key       private key of the authority; never leaves the directory
    tls/ca.pem       its certificate: what agents and people are given to trust
    tls/server.key   private key of the server, made anew with every certificate
    tls/server.pem   the server's certificate

Each file is replaced as a whole, keys before certificates. A crash between two files leaves a pair
that does not fit; the next start notices. The authority's certificate, once there, is never
replaced: agents pin it.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast_contract.clock import Clock
from holdfast_contract.errors import Damaged, StoreFailed, UsageError
from holdfast_contract.logs import get_logger
from holdfast_server.auth.issuing import (
    LEAF_DAYS,
    general_names,
    issue_authority,
    issue_leaf,
    new_key,
    private_pem,
)
from holdfast_server.data_directory import (
    DIRECTORY_MODE,
    PUBLIC_MODE,
    SECRET_MODE,
    file_error,
    sync_directory,
    write_file,
)

RENEW_DAYS = 30
"""A certificate with less than this left is replaced."""
ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1")
_UNSPECIFIED = ("0.0.0.0", "::", "")  # noqa: S104  (compared, not listened on)
assert RENEW_DAYS < LEAF_DAYS

_log = get_logger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """What the server shows, and what its clients trust."""

    certificate: Path
    key: Path
    authority: Path | None
    """None where the certificate was given: then its issuer is somebody else's."""

    def fingerprint(self) -> str:
        """Return SHA-256 of the authority's certificate, else of the server's own: AA:BB:..."""
        return certificate_fingerprint(self.authority or self.certificate)


@dataclass(frozen=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def fits(self) -> bool:
        return self.certificate.public_key() == self.key.public_key()


def names_to_certify(listen_host: str, tls_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names and addresses of the server's certificate, each once, the given ones first.

    An address that means «all of them» is left out: nobody dials it.
    """
    wanted = [*tls_names, *([] if listen_host in _UNSPECIFIED else [listen_host]), *ALWAYS_NAMED]
    return tuple(dict.fromkeys(wanted))


def own_certificates(directory: Path, names: Sequence[str], clock: Clock) -> TlsFiles:
    """Return the server's certificate for `names`, made or renewed in `directory` where needed.

    Renewed: other names, less than 30 days left, not valid yet, or a key that does not fit.

    Raises:
        Damaged: files of the authority do not fit together, or one of them is gone.
        UsageError: one of `names` can stand in no certificate.
        NoSpace, StoreFailed: a file cannot be written.
    """
    now = datetime.fromtimestamp(clock.now_ns() / 1e9, UTC)
    try:
        directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        sync_directory(directory.parent)
    except OSError as exc:
        raise file_error(directory, exc) from exc
    files = TlsFiles(directory / "server.pem", directory / "server.key", directory / "ca.pem")
    authority = _authority(directory, now)
    leaf = _read_pair(files.key, files.certificate)
    if leaf is None or not leaf.fits or not _still_good(leaf.certificate, authority, names, now):
        _renew(files, authority, names, now)
    return files


def given_certificates(certificate: Path, key: Path) -> TlsFiles:
    """Return a certificate chain and key that the administrator brought; loading checks them."""
    return TlsFiles(certificate, key, None)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the server's side of TLS 1.2 and 1.3 with the certificate of `files`.

    Raises:
        UsageError: the certificate cannot be read, or does not fit its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Half a KB in every handshake for a resumption that no client of ours asks for.
    context.num_tickets = 0
    load_certificate(context, files)
    return context


def load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Have the next handshakes of `context` show what lies in `files` now.

    Raises:
        UsageError: the certificate cannot be read, or does not fit its key.
    """
    try:
        # An own password source: OpenSSL would otherwise ask the terminal for an encrypted key's.
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"the certificate {files.certificate} with the key {files.key} cannot be used",
            hint="both are PEM files, the key is not encrypted and fits the certificate",
        ) from exc


def certificate_fingerprint(path: Path) -> str:
    """Return SHA-256 of the first certificate in the PEM file `path`: AA:BB:... (95 characters).

    Raises:
        Damaged: there is none.
        StoreFailed: the file cannot be read.
    """
    certificate = _read_certificate(path)
    if certificate is None:
        raise StoreFailed(f"{path}: no such file")
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER))
    return digest.digest().hex(":").upper()


def _authority(directory: Path, now: datetime) -> _Pair:
    key_path, certificate_path = directory / "ca.key", directory / "ca.pem"
    key, certificate = _read_key(key_path), _read_certificate(certificate_path)
    if certificate is not None:
        if key is None:
            raise Damaged(
                f"the key of the certificate authority is gone: {key_path}",
                hint=f"put it back; removing {certificate_path} too makes a new authority, "
                "which every agent must then be told to trust",
                object=str(key_path),
            )
        pair = _Pair(key, certificate)
        if not pair.fits:
            raise Damaged(f"{key_path} is not the key of {certificate_path}", object=str(key_path))
        return pair
    if key is None:
        key = new_key()
        write_file(key_path, private_pem(key), SECRET_MODE)
    # A key alone is what a crash between the two writes leaves: nobody has trusted it yet.
    certificate = issue_authority(key, now)
    write_file(certificate_path, _public_pem(certificate), PUBLIC_MODE)
    _log.info("certificate authority made", path=certificate_path)
    return _Pair(key, certificate)


def _renew(files: TlsFiles, authority: _Pair, names: Sequence[str], now: datetime) -> None:
    key = new_key()
    certificate = issue_leaf(key, authority.key, authority.certificate, names, now)
    write_file(files.key, private_pem(key), SECRET_MODE)
    write_file(files.certificate, _public_pem(certificate), PUBLIC_MODE)
    _log.info(
        "server certificate made",
        names=list(names),
        until=str(certificate.not_valid_after_utc.date()),
    )


def _still_good(
    leaf: x509.Certificate, authority: _Pair, names: Sequence[str], now: datetime
) -> bool:
    try:
        leaf.verify_directly_issued_by(authority.certificate)
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    if set(found) != set(general_names(names)):
        return False
    first, last = (
        authority.certificate.not_valid_before_utc,
        authority.certificate.not_valid_after_utc,
    )
    if not first <= now <= last:
        return True  # By a clock that is so wrong nothing is judged: what was good stays.
    if leaf.not_valid_before_utc > now:
        return False
    # Close to the authority's own end a renewal gains nothing.
    return leaf.not_valid_after_utc >= min(now + timedelta(days=RENEW_DAYS), last)


def _read_pair(key_path: Path, certificate_path: Path) -> _Pair | None:
    try:
        key, certificate = _read_key(key_path), _read_certificate(certificate_path)
    except Damaged as exc:  # made anew: nothing depends on the server's own pair
        _log.warning("the server certificate is damaged", error=exc)
        return None
    return None if key is None or certificate is None else _Pair(key, certificate)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise file_error(path, exc) from exc


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    content = _read(path)
    if content is None:
        return None
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as exc:
        raise Damaged(f"no private key in {path}", object=str(path)) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Damaged(f"no key of the expected kind in {path}", object=str(path))
    return key


def _read_certificate(path: Path) -> x509.Certificate | None:
    content = _read(path)
    if content is None:
        return None
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as exc:
        raise Damaged(f"no certificate in {path}", object=str(path)) from exc


def _public_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
