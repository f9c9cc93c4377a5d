"""The server's own certificate authority: strict checking passes, and no crash loses it."""

from __future__ import annotations

import hashlib
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from holdfast_contract.errors import Damaged, HoldfastError, StoreFailed, UsageError
from holdfast_server.auth import certificates, issuing
from holdfast_server.auth.certificates import (
    TlsFiles,
    certificate_fingerprint,
    given_certificates,
    load_certificate,
    names_to_certify,
    own_certificates,
    server_context,
)
from holdfast_server.data_directory import write_file

NAMES = names_to_certify("127.0.0.1", ["backup.example.org", "10.1.2.3"])
DAY = 86_400


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = datetime.now(UTC).timestamp()

    def now_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds

    def go(self, days: float) -> None:
        self.seconds += days * DAY

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    return tmp_path / "tls"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def client_context(authority: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str | None:
    """Connect both sides in memory; return the version of TLS, or raise what the client says."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        waiting = 0
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            return ends[0].version()
    raise AssertionError("no end of the handshake")


def test_the_first_start_makes_four_files_and_only_their_owner_reads_the_keys(
    tls: Path, clock: HandClock
) -> None:
    files = own_certificates(tls, NAMES, clock)
    assert sorted(contents(tls)) == ["ca.key", "ca.pem", "server.key", "server.pem"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tls.iterdir()}
    assert modes == {
        "ca.key": 0o600,
        "server.key": 0o600,
        "ca.pem": 0o644,
        "server.pem": 0o644,
    }
    assert stat.S_IMODE(tls.stat().st_mode) == 0o700
    assert files == TlsFiles(tls / "server.pem", tls / "server.key", tls / "ca.pem")


@pytest.mark.parametrize("name", [*NAMES, "BACKUP.example.org"])
def test_a_strict_client_accepts_every_name(tls: Path, clock: HandClock, name: str) -> None:
    files = own_certificates(tls, NAMES, clock)
    version = shake_hands(server_context(files), client_context(tls / "ca.pem"), name)
    assert version == "TLSv1.3"


@pytest.mark.parametrize("name", ["other.example.org", "10.1.2.4", "x.backup.example.org"])
def test_a_client_refuses_another_name(tls: Path, clock: HandClock, name: str) -> None:
    files = own_certificates(tls, NAMES, clock)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(files), client_context(tls / "ca.pem"), name)


def test_a_client_of_another_authority_refuses(tmp_path: Path, clock: HandClock) -> None:
    files = own_certificates(tmp_path / "one", NAMES, clock)
    own_certificates(tmp_path / "two", NAMES, clock)
    with pytest.raises(ssl.SSLCertVerificationError):
        client = client_context(tmp_path / "two" / "ca.pem")
        shake_hands(server_context(files), client, "localhost")


def test_a_second_implementation_finds_the_chain_valid(tls: Path, clock: HandClock) -> None:
    own_certificates(tls, NAMES, clock)
    policy = PolicyBuilder().store(Store([certificate(tls / "ca.pem")])).time(clock.moment())
    leaf = certificate(tls / "server.pem")
    for subject in (x509.DNSName("backup.example.org"), x509.IPAddress(ip_address("::1"))):
        assert len(policy.build_server_verifier(subject).verify(leaf, [])) == 2


def test_old_tls_is_refused_and_1_2_is_not(tls: Path, clock: HandClock) -> None:
    server = server_context(own_certificates(tls, NAMES, clock))
    assert server.minimum_version is ssl.TLSVersion.TLSv1_2
    client = client_context(tls / "ca.pem")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(server, client, "localhost") == "TLSv1.2"


def test_the_authority_can_sign_servers_only_and_each_has_its_own_name(
    tmp_path: Path, clock: HandClock
) -> None:
    subjects = set()
    for name in ("one", "two"):
        own_certificates(tmp_path / name, NAMES, clock)
        authority = certificate(tmp_path / name / "ca.pem")
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        subjects.add(authority.subject)
    assert len(subjects) == 2


def test_lifetimes_are_ten_years_and_397_days(tls: Path, clock: HandClock) -> None:
    own_certificates(tls, NAMES, clock)
    now = clock.moment()
    left = {name: certificate(tls / name).not_valid_after_utc - now for name in CERTIFICATES}
    assert abs(left["ca.pem"] - timedelta(days=3650)) < timedelta(minutes=1)
    assert abs(left["server.pem"] - timedelta(days=397)) < timedelta(minutes=1)


CERTIFICATES = ("ca.pem", "server.pem")


def test_a_second_start_changes_nothing(tls: Path, clock: HandClock) -> None:
    own_certificates(tls, NAMES, clock)
    before = contents(tls)
    clock.go(days=366)
    own_certificates(tls, tuple(reversed(NAMES)), clock)
    assert contents(tls) == before


def test_other_names_make_a_new_certificate_of_the_same_authority(
    tls: Path, clock: HandClock
) -> None:
    own_certificates(tls, NAMES, clock)
    before = contents(tls)
    files = own_certificates(tls, (*NAMES, "new.example.org"), clock)
    after = contents(tls)
    assert (after["ca.pem"], after["ca.key"]) == (before["ca.pem"], before["ca.key"])
    assert after["server.pem"] != before["server.pem"]
    assert after["server.key"] != before["server.key"]
    shake_hands(server_context(files), client_context(tls / "ca.pem"), "new.example.org")


def test_a_certificate_is_renewed_in_its_last_30_days(tls: Path, clock: HandClock) -> None:
    own_certificates(tls, NAMES, clock)
    before = contents(tls)
    clock.go(days=397 - 30 + 0.1)
    own_certificates(tls, NAMES, clock)
    assert contents(tls)["ca.pem"] == before["ca.pem"]
    left = certificate(tls / "server.pem").not_valid_after_utc - clock.moment()
    assert left > timedelta(days=396)


def test_a_certificate_from_the_future_is_made_anew(tls: Path, clock: HandClock) -> None:
    own_certificates(tls, NAMES, clock)
    clock.go(days=2 * 365)
    own_certificates(tls, NAMES, clock)
    clock.go(days=-365)
    own_certificates(tls, NAMES, clock)
    assert certificate(tls / "server.pem").not_valid_before_utc < clock.moment()


@pytest.mark.parametrize("years", [-50, -1, 11, 40])
def test_a_clock_outside_of_the_authoritys_time_changes_nothing_that_was_good(
    tls: Path, clock: HandClock, years: int
) -> None:
    files = own_certificates(tls, NAMES, clock)
    before = files.certificate.read_bytes()
    clock.go(days=365 * years)
    assert own_certificates(tls, NAMES, clock) == files
    assert files.certificate.read_bytes() == before
    # Where there is none, one is made that the authority can vouch for.
    files.certificate.unlink()
    own_certificates(tls, NAMES, clock)
    made, authority = certificate(files.certificate), certificate(tls / "ca.pem")
    assert authority.not_valid_before_utc <= made.not_valid_before_utc
    assert made.not_valid_before_utc < made.not_valid_after_utc <= authority.not_valid_after_utc
    server_context(files)


def test_a_renewed_certificate_is_shown_without_a_restart(tls: Path, clock: HandClock) -> None:
    files = own_certificates(tls, NAMES, clock)
    context = server_context(files)
    clock.go(days=380)
    load_certificate(context, own_certificates(tls, NAMES, clock))
    shown = x509.load_der_x509_certificate(_shown_by(context, tls / "ca.pem"))
    assert shown == certificate(files.certificate)


def _shown_by(context: ssl.SSLContext, authority: Path) -> bytes:
    """Return the certificate that a client gets in a handshake."""
    trusting = ssl.create_default_context(cafile=str(authority))
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    for _ in range(4):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    found = client.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_no_certificate_outlives_its_authority_and_none_is_made_at_every_start(
    tls: Path, clock: HandClock
) -> None:
    own_certificates(tls, NAMES, clock)
    clock.go(days=3640)
    own_certificates(tls, NAMES, clock)
    before = contents(tls)
    end = certificate(tls / "ca.pem").not_valid_after_utc
    assert certificate(tls / "server.pem").not_valid_after_utc == end
    clock.go(days=1)
    own_certificates(tls, NAMES, clock)
    assert contents(tls) == before


@pytest.mark.parametrize("name", ["server.key", "server.pem"])
@pytest.mark.parametrize("content", [None, b"", b"not PEM", b"\xff"])
def test_a_lost_or_damaged_pair_of_the_server_is_made_anew(
    tls: Path, clock: HandClock, name: str, content: bytes | None
) -> None:
    files = own_certificates(tls, NAMES, clock)
    authority = (tls / "ca.pem").read_bytes()
    (tls / name).unlink() if content is None else (tls / name).write_bytes(content)
    own_certificates(tls, NAMES, clock)
    assert (tls / "ca.pem").read_bytes() == authority
    shake_hands(server_context(files), client_context(tls / "ca.pem"), "localhost")


def test_a_key_that_does_not_fit_the_certificate_is_made_anew(tls: Path, clock: HandClock) -> None:
    files = own_certificates(tls, NAMES, clock)
    (tls / "server.key").write_bytes(issuing.private_pem(issuing.new_key()))
    own_certificates(tls, NAMES, clock)
    shake_hands(server_context(files), client_context(tls / "ca.pem"), "localhost")


def test_a_pair_of_another_authority_is_made_anew(tmp_path: Path, clock: HandClock) -> None:
    own_certificates(tmp_path / "one", NAMES, clock)
    files = own_certificates(tmp_path / "two", NAMES, clock)
    for name in ("server.key", "server.pem"):
        (tmp_path / "two" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    own_certificates(tmp_path / "two", NAMES, clock)
    client = client_context(tmp_path / "two" / "ca.pem")
    shake_hands(server_context(files), client, "localhost")


def no_key(tls: Path) -> None:
    (tls / "ca.key").unlink()


def broken_key(tls: Path) -> None:
    (tls / "ca.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")


def broken_certificate(tls: Path) -> None:
    (tls / "ca.pem").write_bytes(b"nothing")


def other_key(tls: Path) -> None:
    (tls / "ca.key").write_bytes(issuing.private_pem(issuing.new_key()))


@pytest.mark.parametrize("spoil", [no_key, broken_key, broken_certificate, other_key])
def test_a_damaged_authority_is_named_and_never_replaced(
    tls: Path, clock: HandClock, spoil: Callable[[Path], None]
) -> None:
    own_certificates(tls, NAMES, clock)
    spoil(tls)
    before = contents(tls)
    with pytest.raises(Damaged) as caught:
        own_certificates(tls, NAMES, clock)
    assert str(tls / "ca.") in str(caught.value.details["object"])
    assert contents(tls) == before


class Stop(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("start", ["first", "renewal"])
@pytest.mark.parametrize("write", [0, 1, 2, 3])
def test_a_stop_between_any_two_files_is_healed_by_the_next_start(
    tls: Path, clock: HandClock, start: str, write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if start == "renewal":
        own_certificates(tls, NAMES, clock)
        clock.go(days=390)
    left = iter(range(write, -1, -1))

    def stopping(path: Path, content: bytes, mode: int) -> None:
        if next(left, -1) == 0:
            raise Stop
        write_file(path, content, mode)

    with monkeypatch.context() as patched:
        patched.setattr(certificates, "write_file", stopping)
        try:
            own_certificates(tls, NAMES, clock)
            assert start == "renewal"
            assert write > 1
        except Stop:
            pass
    trusted = (tls / "ca.pem").read_bytes() if (tls / "ca.pem").exists() else None
    files = own_certificates(tls, NAMES, clock)
    assert trusted in (None, (tls / "ca.pem").read_bytes())
    server_context(files)  # refuses a key that does not fit
    certificate(tls / "server.pem").verify_directly_issued_by(certificate(tls / "ca.pem"))


def test_the_fingerprint_is_sha256_of_the_authority(tls: Path, clock: HandClock) -> None:
    files = own_certificates(tls, NAMES, clock)
    der = ssl.PEM_cert_to_DER_cert((tls / "ca.pem").read_text())
    expected = hashlib.sha256(der).hexdigest().upper()
    assert files.fingerprint() == ":".join(expected[place : place + 2] for place in range(0, 64, 2))


def test_given_files_are_used_as_they_are(tls: Path, clock: HandClock, tmp_path: Path) -> None:
    own_certificates(tls, NAMES, clock)
    files = given_certificates(tls / "server.pem", tls / "server.key")
    assert files.authority is None
    assert files.fingerprint() == certificate_fingerprint(tls / "server.pem")
    shake_hands(server_context(files), client_context(tls / "ca.pem"), "localhost")


def test_given_files_that_do_not_fit_are_wrong_usage(tls: Path, clock: HandClock) -> None:
    own_certificates(tls, NAMES, clock)
    for pair in (("server.pem", "ca.key"), ("server.key", "server.pem"), ("absent", "ca.key")):
        with pytest.raises(UsageError, match="cannot be used"):
            server_context(given_certificates(tls / pair[0], tls / pair[1]))


def test_an_encrypted_key_is_wrong_usage_and_nobody_is_asked(tls: Path, clock: HandClock) -> None:
    from cryptography.hazmat.primitives import serialization

    own_certificates(tls, NAMES, clock)
    key = serialization.load_pem_private_key((tls / "server.key").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"geheim"),
    )
    (tls / "server.key").write_bytes(encrypted)
    with pytest.raises(UsageError, match="cannot be used"):
        server_context(given_certificates(tls / "server.pem", tls / "server.key"))


def test_a_certificate_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed):
        certificate_fingerprint(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(Damaged):
        certificate_fingerprint(tmp_path / "empty")


def test_a_name_that_no_certificate_can_hold_is_wrong_usage(tls: Path, clock: HandClock) -> None:
    with pytest.raises(UsageError, match="can stand in no certificate"):
        own_certificates(tls, ["bäckup.example"], clock)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, clock: HandClock) -> None:
    with pytest.raises(HoldfastError) as caught:
        own_certificates(tmp_path / "absent" / "tls", NAMES, clock)
    assert type(caught.value) is StoreFailed


@pytest.mark.parametrize(
    ("host", "given", "names"),
    [
        ("127.0.0.1", [], ("127.0.0.1", "localhost", "::1")),
        ("0.0.0.0", ["a"], ("a", "localhost", "127.0.0.1", "::1")),
        ("::", [], ("localhost", "127.0.0.1", "::1")),
        ("10.0.0.1", ["10.0.0.1", "b"], ("10.0.0.1", "b", "localhost", "127.0.0.1", "::1")),
    ],
)
def test_the_certificate_names_what_is_given_listened_on_and_local(
    host: str, given: list[str], names: tuple[str, ...]
) -> None:
    assert names_to_certify(host, given) == names
