"""The client's identity on disk: private keys, and the identity record that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast_agent.state.directory import StateDirectory
from holdfast_contract.errors import Conflict

_KEYS_FILE: Final = "identity.keys"
_RECORD_FILE: Final = "identity.record"
_MAGIC: Final = b"holdfast-identity-keys-1\n"
_KEY_BYTES: Final = 32


class IdentityFiles:
    """Reads and writes the identity of a state directory."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    def keys(self) -> tuple[bytes, bytes] | None:
        """Return the private keys (Ed25519, X25519), 32 bytes each; None before there are any.

        Raises:
            Conflict: the file is not what was written.
        """
        data = self._state.read(_KEYS_FILE)
        if data is None:
            return None
        if not data.startswith(_MAGIC) or len(data) != len(_MAGIC) + 2 * _KEY_BYTES:
            raise Conflict(
                "the identity's key file is damaged",
                hint="remove the state directory's content and enrol the client anew",
            )
        both = data[len(_MAGIC) :]
        return both[:_KEY_BYTES], both[_KEY_BYTES:]

    def keys_or_new(self, generate: Callable[[], tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        """Return the private keys, made durable by this call when there were none.

        Raises:
            NoSpace, Refused, InternalError: new ones cannot be kept, so they must not be used.
        """
        found = self.keys()
        if found is None:
            found = generate()
            self._state.write(_KEYS_FILE, _MAGIC, *found)
        return found

    def record(self) -> bytes | None:
        """Return the identity record as the server has it; None before the enrolment ended."""
        return self._state.read(_RECORD_FILE)

    def keep_record(self, record: bytes) -> None:
        """Keep the identity record that counts from now on."""
        self._state.write(_RECORD_FILE, record)
