"""What the agent remembers of its history: how a server that shows an older one is found out."""

from __future__ import annotations

from typing import Final, NamedTuple

from holdfast_agent.state.directory import StateDirectory
from holdfast_contract.errors import Conflict
from holdfast_contract.ids import ZERO_HASH

_FILE: Final = "memory"
_MAGIC: Final = b"holdfast-memory-1\n"


class Remembered(NamedTuple):
    """The newest snapshot of the client that the agent knows to stand."""

    seq: int
    """0: none yet."""
    snapshot: bytes
    """Zero bytes: none yet."""


NOTHING: Final = Remembered(0, ZERO_HASH)


class Memory:
    """Reads and writes what is remembered."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state

    def load(self) -> Remembered:
        """Return what is remembered.

        Raises:
            Conflict: the file is not what was written; to forget is an administrator's decision.
        """
        data = self._state.read(_FILE)
        if data is None:
            return NOTHING
        seq, snapshot = data[len(_MAGIC) : len(_MAGIC) + 8], data[len(_MAGIC) + 8 :]
        if not data.startswith(_MAGIC) or len(snapshot) != len(ZERO_HASH):
            raise Conflict(
                "the memory of the client's history is damaged",
                hint="compare `holdfast snapshots` with what you expect, then remove the file "
                "`memory` of the state directory",
            )
        return Remembered(int.from_bytes(seq, "little"), snapshot)

    def keep(self, remembered: Remembered) -> None:
        """Remember from now on.

        Raises:
            NoSpace, Refused, InternalError: the old memory stays.
        """
        seq = remembered.seq.to_bytes(8, "little")
        self._state.write(_FILE, _MAGIC, seq, remembered.snapshot)
