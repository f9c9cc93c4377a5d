"""Bearer tokens: 256 random bits behind a prefix that tells people and scanners what it is.

The catalog keeps hashes only. A token is looked up by its hash, so the time of a look-up tells
nothing about a token; where two hashes are compared directly, it is in constant time. A plain hash
is enough: nobody guesses 256 random bits, so slowing a guesser down protects nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Callable
from enum import Enum

from blake3 import blake3

from holdfast_contract.errors import NotAuthenticated

SECRET_BYTES = 32
_ENCODED_CHARACTERS = 43
"""32 bytes in base64 for URLs, without padding."""
_HASH_CONTEXT = b"holdfast/1/token\0"
"""Hashes of tokens equal no other hash of the product."""


class TokenKind(Enum):
    """What a token is for; the value is its prefix."""

    API = "hfa_"
    """A person or program that uses `/v1`."""
    ENROL = "hfe_"
    """A client becomes known, once."""
    CONNECTION = "hfc_"
    """A connected agent uses the data routes."""


def new_token(kind: TokenKind, random: Callable[[int], bytes] = os.urandom) -> str:
    """Return a new token of `kind`: its prefix and 43 characters of base64 for URLs."""
    secret = random(SECRET_BYTES)
    assert len(secret) == SECRET_BYTES
    return kind.value + base64.urlsafe_b64encode(secret).rstrip(b"=").decode("ascii")


def token_kind(text: str) -> TokenKind:
    """Return what the token `text` is for, from its form alone.

    Raises:
        NotAuthenticated: `text` has not the form of a token.
    """
    for kind in TokenKind:
        if text.startswith(kind.value) and _is_canonical(text[len(kind.value) :]):
            return kind
    # Worded like an unknown token: the answer tells nothing of what was wrong.
    raise NotAuthenticated("the token is unknown, expired or revoked")


def _is_canonical(encoded: str) -> bool:
    if len(encoded) != _ENCODED_CHARACTERS or not encoded.isascii():
        return False
    try:
        secret = base64.b64decode(encoded + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode("ascii") == encoded


def hash_token(text: str) -> bytes:
    """Return the 32 bytes under which the catalog knows the token `text`.

    Raises:
        NotAuthenticated: `text` has not the form of a token.
    """
    token_kind(text)
    return blake3(_HASH_CONTEXT + text.encode("ascii")).digest()


def is_same_hash(one: bytes, other: bytes) -> bool:
    """Tell in constant time whether two hashes of tokens are equal."""
    return hmac.compare_digest(one, other)
