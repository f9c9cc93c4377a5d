"""The two key pairs of one client: Ed25519 to sign with, X25519 to receive sealed keys with."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from holdfast_contract.errors import InvalidInput
from holdfast_contract.format.layout import Buffer

_KEY_BYTES: Final = 32


class IdentityKey:
    """A client's private keys; they stay in its state directory."""

    __slots__ = ("_box_private", "_sign", "sign_public")

    def __init__(self, sign_private: bytes, box_private: bytes) -> None:
        if len(sign_private) != _KEY_BYTES or len(box_private) != _KEY_BYTES:
            raise InvalidInput("an identity's private keys are 32 bytes each")
        self._sign = Ed25519PrivateKey.from_private_bytes(sign_private)
        self._box_private = box_private
        self.sign_public: Final = self._sign.public_key().public_bytes_raw()
        """Ed25519, 32 bytes: `sign_key` of the identity record."""

    def __repr__(self) -> str:
        return f"IdentityKey({self.sign_public.hex()})"

    def __reduce__(self) -> str:
        raise TypeError("keys are not to be copied out of the process")

    @classmethod
    def generate(cls) -> IdentityKey:
        """Return two new pairs from the system's random source."""
        return cls(
            Ed25519PrivateKey.generate().private_bytes_raw(),
            X25519PrivateKey.generate().private_bytes_raw(),
        )

    @property
    def box_public(self) -> bytes:
        """X25519, 32 bytes: `box_key` of the identity record.

        Made when asked for: with the first X25519 key `cryptography` loads the whole of its
        backend, and an agent that idles has enough in its 0.8 MB less.
        """
        return (
            X25519PrivateKey.from_private_bytes(self._box_private).public_key().public_bytes_raw()
        )

    def private_bytes(self) -> tuple[bytes, bytes]:
        """Return both private keys, 32 bytes each: Ed25519, X25519. They are secrets."""
        return self._sign.private_bytes_raw(), self._box_private

    def sign(self, message: Buffer) -> bytes:
        """Return the 64 bytes of Ed25519 over `message`, which begins with its own context."""
        return self._sign.sign(bytes(message))


def verify_signature(sign_public: bytes, message: Buffer, signature: Buffer) -> bool:
    """Tell whether the owner of `sign_public` signed `message`."""
    try:
        key = Ed25519PublicKey.from_public_bytes(sign_public)
        key.verify(bytes(signature), bytes(message))
    except (InvalidSignature, ValueError):
        return False
    return True
