"""Which refusals are written down: all are counted, and nobody fills the disk with them. Pure.

The first refusal of a kind is a row at once; those like it are counted and told in one row when the
window is over. Who calls has rows of its own, so that a flood by somebody else hides nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

WINDOW_SECONDS: Final = 600.0
ROWS_OF_CALLER_MAX: Final = 8
"""Different refusals of one caller that a window tells apart; further ones are one sum."""
CALLERS_MAX: Final = 32
"""Callers that a window tells apart; further ones are one. So a window writes at most 2 rows for
each of (32 + 1) * (8 + 1) kinds, and, while only strangers without a token call, at most 18."""
ALL_OTHERS: Final = "others"


class Refusal(NamedTuple):
    """What was refused, to whom; equal ones are counted together."""

    caller: str
    """Id of a token, name of a client, or empty: nobody with a token that counts."""
    client: str
    message: str
    route: str
    """Method and pattern of the route; empty where it was no request."""
    code: str


@dataclass
class _Caller:
    counts: dict[Refusal, int] = field(default_factory=dict)


class Refusals:
    """Counts refusals; `now` is monotonic time in seconds."""

    def __init__(self) -> None:
        self._callers: dict[str, _Caller] = {}
        self._since: float | None = None

    def note(self, refusal: Refusal, now: float) -> bool:
        """Count a refusal; True: it is the first of its kind, to be written down now."""
        if self._since is None:
            self._since = now
        name = refusal.caller
        if name and name not in self._callers and self._known() >= CALLERS_MAX:
            refusal = refusal._replace(caller=ALL_OTHERS, client="")
        counts = self._callers.setdefault(refusal.caller, _Caller()).counts
        if refusal not in counts and len(counts) >= ROWS_OF_CALLER_MAX:
            refusal = Refusal(refusal.caller, "", "further acts were refused", "", "")
        is_first = refusal not in counts
        counts[refusal] = counts.get(refusal, 0) + 1
        return is_first

    def _known(self) -> int:
        return sum(1 for caller in self._callers if caller not in ("", ALL_OTHERS))

    def is_due(self, now: float) -> bool:
        """Tell whether a window is over."""
        return self._since is not None and now - self._since >= WINDOW_SECONDS

    def close_window(self) -> list[tuple[Refusal, int]]:
        """Return what came behind the first of its kind and how often; the next window begins."""
        told = [
            (refusal, count - 1)
            for caller in self._callers.values()
            for refusal, count in caller.counts.items()
            if count > 1
        ]
        self._callers, self._since = {}, None
        return told
