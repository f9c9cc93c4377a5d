"""What is fuzzed: a target takes bytes; it returns or raises one of our errors, nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast_contract.errors import HoldfastError
from tests.fuzz import objects, words

CORPUS = Path(__file__).parent / "corpus"
Repair = Callable[[bytes], bytes]
_REPAIRS: dict[str, Repair] = {
    "refs_full": objects.hashed,
    "refs_difference": objects.hashed,
    "journal": objects.hashed,
    "pack": objects.pack_hashed,
    "footer": objects.pack_hashed,
}


@dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    decode: Callable[[bytes], None]
    repair: Repair | None
    """Makes hashes right again: without it a mutation never gets past them."""

    def run(self, data: bytes) -> bool:
        """Decode as it is, and with its hashes made right; tell whether anything was accepted.

        Raises:
            Whatever is not one of our errors, or an error that is not one line.
        """
        is_accepted = self._once(data)
        if self.repair is not None:
            is_accepted |= self._once(self.repair(data))
        return is_accepted

    def _once(self, data: bytes) -> bool:
        try:
            self.decode(data)
        except HoldfastError as error:
            assert error.message
            assert "\n" not in error.message
            return False
        return True

    def corpus(self) -> list[bytes]:
        """Return its seeds and finds, in the order of their names."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


def _found() -> Iterator[Target]:
    for module in (objects, words):
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            if name.startswith("_") or name in ("again", "hashed", "pack_hashed"):
                continue
            yield Target(name, function, _REPAIRS.get(name))


TARGETS = {target.name: target for target in _found()}
