"""Tokens: their form is checked before anything else, and the catalog can keep a hash only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_contract.errors import NotAuthenticated
from holdfast_server.auth.tokens import (
    TokenKind,
    hash_token,
    is_same_hash,
    new_token,
    token_kind,
)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [(TokenKind.API, "hfa_"), (TokenKind.ENROL, "hfe_"), (TokenKind.CONNECTION, "hfc_")],
)
def test_a_token_says_its_kind_and_holds_256_bits(kind: TokenKind, prefix: str) -> None:
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    token = new_token(kind, random)
    assert asked == [32]
    assert token == prefix + "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert token_kind(token) is kind


def test_two_tokens_differ_in_text_and_hash() -> None:
    one, other = new_token(TokenKind.API), new_token(TokenKind.API)
    assert one != other
    assert not is_same_hash(hash_token(one), hash_token(other))
    assert is_same_hash(hash_token(one), hash_token(one))


def test_the_same_secret_of_another_kind_is_another_token() -> None:
    tokens = [new_token(kind, bytes) for kind in TokenKind]
    assert len({hash_token(token) for token in tokens}) == len(TokenKind)


def test_the_hash_is_written_down_for_ever() -> None:
    token = new_token(TokenKind.API, bytes)
    # A change of this would make every token of every server worthless.
    golden = "425448f4be586154c80459f238a428f4378b63d48b81bde778e0431400474b87"
    assert hash_token(token).hex() == golden


GOOD = new_token(TokenKind.API, lambda count: b"\xfb" * count)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hfa_",
        GOOD[4:],
        GOOD[:-1],
        GOOD + "A",
        GOOD + "=",
        " " + GOOD,
        GOOD + "\n",
        GOOD.upper(),
        "hfx_" + GOOD[4:],
        "HFA_" + GOOD[4:],
        GOOD[:-1] + "9",  # bits behind the 256th
        GOOD[:-1] + "\u0661",
        GOOD[:10] + "/" + GOOD[11:],
        GOOD[:10] + "+" + GOOD[11:],
        GOOD[:10] + "\0" + GOOD[11:],
        GOOD[:10] + "\udcff" + GOOD[11:],
    ],
)
def test_what_has_not_the_form_of_a_token_is_not_hashed(text: str) -> None:
    assert token_kind(GOOD) is TokenKind.API
    with pytest.raises(NotAuthenticated) as caught:
        hash_token(text)
    assert caught.value.message == "the token is unknown, expired or revoked"


@given(st.sampled_from(list(TokenKind)), st.binary(min_size=32, max_size=32))
def test_every_token_is_accepted_in_one_spelling_only(kind: TokenKind, secret: bytes) -> None:
    token = new_token(kind, lambda count: secret)
    assert token_kind(token) is kind
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [token[:-1] + last for last in alphabet if last != token[-1]]
    accepted = {hash_token(other) for other in others if _is_token(other)}
    assert len(accepted) == 15  # 16 last characters carry 4 bits each; the others are refused
    assert hash_token(token) not in accepted


def _is_token(text: str) -> bool:
    try:
        token_kind(text)
    except NotAuthenticated:
        return False
    return True
