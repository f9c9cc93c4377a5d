from __future__ import annotations

import base64

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from holdfast_agent.crypto.keys import KeyMaterial, encode_key_material
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
    recover,
    unwrap_keys,
    wrap_keys,
)
from holdfast_contract.errors import HoldfastError, InvalidInput, UnsupportedVersion, WrongKey
from holdfast_contract.format.domain import Wrap
from tests.support.samples import DOMAIN, KEYS, MATERIAL, OTHER_DOMAIN, flips, noise

PRIVATE = noise("recipient private")
RECIPIENT = X25519PrivateKey.from_private_bytes(PRIVATE).public_key().public_bytes_raw()
WRAP = wrap_keys(MATERIAL, RECIPIENT)


def with_sealed(sealed: bytes) -> Wrap:
    return msgspec.structs.replace(WRAP, sealed=sealed)


def recovery_text() -> str:
    recovery, _ = new_recovery("shop", MATERIAL)
    return format_recovery_file(recovery)


TEXT = recovery_text()


def test_a_wrap_opens_for_its_recipient() -> None:
    assert unwrap_keys(DOMAIN, WRAP, PRIVATE) == MATERIAL
    assert (WRAP.recipient, WRAP.suite, WRAP.epoch) == (RECIPIENT, 1, 2)
    assert len(WRAP.sealed) == 32 + (32 + 2 + 2 * 36 + 8) + 16


def test_a_wrap_opens_for_nobody_else_and_for_no_other_domain() -> None:
    with pytest.raises(WrongKey):
        unwrap_keys(DOMAIN, WRAP, noise("somebody else"))
    with pytest.raises(WrongKey):
        unwrap_keys(OTHER_DOMAIN, WRAP, PRIVATE)


def test_a_flipped_bit_of_a_wrap_is_refused() -> None:
    for _, changed in flips(WRAP.sealed):
        with pytest.raises(WrongKey):
            unwrap_keys(DOMAIN, with_sealed(changed), PRIVATE)


def test_a_wrap_that_names_another_epoch_is_refused() -> None:
    for epoch in (1, 3, (1 << 32) - 1):
        with pytest.raises(WrongKey):
            unwrap_keys(DOMAIN, msgspec.structs.replace(WRAP, epoch=epoch), PRIVATE)


def test_a_wrap_bound_to_an_epoch_that_it_does_not_hold_is_refused() -> None:
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    public = X25519PrivateKey.from_private_bytes(PRIVATE).public_key()
    info = b"holdfast/1/wrap" + DOMAIN + (9).to_bytes(4, "little") + RECIPIENT
    sealed = suite.encrypt(encode_key_material(MATERIAL), public, info)
    with pytest.raises(WrongKey, match="epoch"):
        unwrap_keys(DOMAIN, Wrap(recipient=RECIPIENT, suite=1, epoch=9, sealed=sealed), PRIVATE)


def test_a_wrap_cut_off_anywhere_is_refused() -> None:
    for length in range(len(WRAP.sealed)):
        with pytest.raises(WrongKey):
            unwrap_keys(DOMAIN, with_sealed(WRAP.sealed[:length]), PRIVATE)


def test_a_wrap_opens_when_old_epochs_were_left_out() -> None:
    later = KeyMaterial(DOMAIN, MATERIAL.base_secret, ((8, noise("8")), (11, noise("11"))))
    assert unwrap_keys(DOMAIN, wrap_keys(later, RECIPIENT), PRIVATE) == later


def test_an_unusable_public_key_is_refused() -> None:
    for recipient in (bytes(32), b"short"):
        with pytest.raises(InvalidInput):
            wrap_keys(MATERIAL, recipient)


def test_a_recovery_file_gives_the_keys_back_by_itself() -> None:
    assert recover(TEXT) == MATERIAL
    assert TEXT.isascii()
    assert TEXT.splitlines()[0] == "holdfast-recovery-1"
    assert max(map(len, TEXT.splitlines())) < 300
    parsed = parse_recovery_file(TEXT)
    assert (parsed.name, parsed.domain_id) == ("shop", DOMAIN)
    assert parsed.key_check == KEYS.key_check
    assert format_recovery_file(parsed) == TEXT


def test_a_new_recovery_goes_with_the_wrap_that_the_domain_record_keeps() -> None:
    recovery, wrap = new_recovery("shop", MATERIAL)
    assert recovery.recipient == wrap.recipient
    assert recovery.wraps == (wrap,)
    again, _ = new_recovery("shop", MATERIAL)
    assert again.private_key != recovery.private_key


def test_newer_wraps_of_the_store_are_taken_when_they_hold_the_same_base_secret() -> None:
    recovery = parse_recovery_file(TEXT)
    newer = KeyMaterial(DOMAIN, MATERIAL.base_secret, (*MATERIAL.epochs, (3, noise("3"))))
    wraps = [wrap_keys(newer, recovery.recipient), wrap_keys(newer, RECIPIENT)]
    assert recover(TEXT, wraps) == newer


def test_a_key_that_a_server_made_is_not_believed() -> None:
    recovery = parse_recovery_file(TEXT)
    made = KeyMaterial(DOMAIN, noise("made by the server"), ((9, noise("9")),))
    assert recover(TEXT, [wrap_keys(made, recovery.recipient)]) == MATERIAL
    changed = Recovery(
        "shop",
        DOMAIN,
        recovery.key_check,
        recovery.private_key,
        (wrap_keys(made, recovery.recipient),),
    )
    with pytest.raises(WrongKey):
        recover(format_recovery_file(changed))


def test_every_changed_line_of_a_recovery_file_is_refused() -> None:
    lines = TEXT.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("#"):
            continue
        gone = "\n".join(lines[:at] + lines[at + 1 :])
        with pytest.raises(HoldfastError):
            recover(gone)
        if not line.startswith(("name", "wrap")):
            with pytest.raises(HoldfastError):
                recover("\n".join([*lines, line]))


def test_a_mistyped_character_of_a_recovery_file_is_refused() -> None:
    start = TEXT.index("\ndomain ") + 1
    private = parse_recovery_file(TEXT).private_key
    for at in range(start, len(TEXT), 23):
        for wrong in {"A", "7"} - {TEXT[at]}:
            if TEXT[at] == "\n":
                continue
            try:
                found = recover(TEXT[:at] + wrong + TEXT[at + 1 :])
            except HoldfastError as exc:
                assert base64.b64encode(private).decode() not in f"{exc.message}{exc.hint}"
                continue
            # X25519 ignores five bits of a private key: such a typing error changes nothing.
            assert found == MATERIAL


def test_comments_blank_lines_and_order_do_not_matter() -> None:
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    mixed = "\n\n# printed in March\n".join([lines[0], *reversed(lines[1:])])
    assert recover("\n# top\n" + mixed) == MATERIAL
    assert recover(TEXT.replace("\n", "\r\n")) == MATERIAL


@pytest.mark.parametrize("text", ["", "# only\n", "holdfast-key-1 x y", "holdfast-recovery-1\n"])
def test_what_is_no_recovery_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_recovery_file(text)


def test_files_of_a_later_version_are_told_apart() -> None:
    with pytest.raises(UnsupportedVersion):
        parse_recovery_file(TEXT.replace("recovery-1", "recovery-2"))
    with pytest.raises(UnsupportedVersion):
        parse_recipient_file(f"holdfast-recipient-2 {RECIPIENT.hex()}")


def test_a_recipient_file_comes_back() -> None:
    text = format_recipient_file(RECIPIENT)
    assert text == f"holdfast-recipient-1 {RECIPIENT.hex()}\n"
    assert parse_recipient_file(text) == RECIPIENT
    for wrong in ("", "holdfast-recipient-1", text[:-2], text.upper(), text + "00", "x " + text):
        with pytest.raises(InvalidInput):
            parse_recipient_file(wrong)


def test_the_private_key_is_not_shown() -> None:
    recovery = parse_recovery_file(TEXT)
    assert repr(recovery.private_key)[2:-1] not in repr(recovery)


@pytest.mark.parametrize("epoch", ["", "0", "02", "-2", "x", "4294967296", "99999999999", "\u0662"])
def test_a_wrap_line_without_a_proper_epoch_is_refused(epoch: str) -> None:
    assert "\nwrap 2 " in TEXT
    with pytest.raises(InvalidInput, match="wrap"):
        parse_recovery_file(TEXT.replace("\nwrap 2 ", f"\nwrap {epoch} "))


def test_a_private_file_comes_back_and_is_told_apart() -> None:
    text = format_private_file(PRIVATE)
    assert parse_private_file(text) == PRIVATE
    assert public_key_of(PRIVATE) == RECIPIENT
    assert is_private_file(text)
    assert not any(map(is_private_file, (TEXT, format_recipient_file(RECIPIENT), "")))
    assert len(new_private_key()) == 32
    for wrong in ("", text[:-6], f"x {text}", "holdfast-private-1 AAAA"):
        with pytest.raises(InvalidInput):
            parse_private_file(wrong)
    with pytest.raises(UnsupportedVersion):
        parse_private_file(text.replace("private-1", "private-2"))
