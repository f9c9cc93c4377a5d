"""Which names are left out: gitignore patterns, as everywhere in the product.

Patterns are relative to the path that is backed up (or restored): `/cache` means its child `cache`,
`*.log` any name below it. A pattern that begins with that path itself means the same as without it
(`/data/cache` when `/data` is backed up), as users of restic write it.

A directory that matches is left out with all that is in it: as with git, a later `!` pattern brings
back nothing from inside it. Every path is matched as itself, its parents having been asked before.
(The library `pathspec` lets a pattern match all that is below its match as well, also a `!` one:
`*.log`, `!keep/` then brings back `keep/x.log`, which git leaves out. 484 KB for a wrong answer.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final, NamedTuple

from holdfast_contract.errors import InvalidInput

_PATTERNS_MAX: Final = 10_000
_PATTERN_CHARACTERS_MAX: Final = 4096
_CLASSES: Final = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


class _Line(NamedTuple):
    """One pattern, translated."""

    leaves_out: bool
    """False: a `!` pattern, which brings back."""
    expression: str
    """For a whole path; a directory's ends with a slash."""


class Rules:
    """Patterns, ready to match the names below one path."""

    def __init__(self, patterns: Iterable[str], base: bytes = b"/") -> None:
        """Take the patterns for what lies below `base`, an absolute path.

        Raises:
            InvalidInput: a pattern is not one, or there are too many.
        """
        above = os.fsdecode(base).rstrip("/")
        lines = [line for pattern in patterns for line in _lines(pattern, above)]
        if len(lines) > _PATTERNS_MAX:
            raise InvalidInput(f"more than {_PATTERNS_MAX} patterns")
        # The last match decides. Neighbours that say the same are one expression.
        self._groups: list[tuple[bool, re.Pattern[str]]] = [
            (leaves_out, re.compile("|".join(line.expression for line in group), re.DOTALL))
            for leaves_out, group in groupby(lines, key=lambda line: line.leaves_out)
        ][::-1]

    def __bool__(self) -> bool:
        """Whether there is anything to match."""
        return bool(self._groups)

    def match(self, path: bytes, is_directory: bool) -> bool:
        """Return whether `path` (relative to the base, names joined by `/`) is left out.

        Its parents are taken to be in: a walk asks for every directory before it goes down.
        Cost: about a microsecond with a few patterns; nothing without any.
        """
        if not self._groups:
            return False
        text = os.fsdecode(path)
        if is_directory:
            text += "/"
        for leaves_out, expression in self._groups:
            if expression.fullmatch(text) is not None:
                return leaves_out
        return False

    def match_within(self, path: bytes, is_directory: bool) -> bool:
        """Return whether `path` or one of the directories above it is left out."""
        if not self._groups:
            return False
        end = path.find(b"/")
        while end >= 0:
            if self.match(path[:end], is_directory=True):
                return True
            end = path.find(b"/", end + 1)
        return self.match(path, is_directory)


def _lines(pattern: str, base: str) -> Iterator[_Line]:
    if "\n" in pattern or "\0" in pattern or len(pattern) > _PATTERN_CHARACTERS_MAX:
        raise InvalidInput("a pattern is one line of at most 4,096 characters")
    text = _without_trailing_spaces(pattern)
    if not text or text.startswith("#"):
        return
    leaves_out = not text.startswith("!")
    text = text if leaves_out else text[1:]
    if not text.strip("/"):
        raise InvalidInput(f"not a gitignore pattern: {pattern!r}", hint="It names nothing.")
    yield _Line(leaves_out, _translated(text, pattern))
    if base and text.startswith(base + "/") and text[len(base) :].strip("/"):
        yield _Line(leaves_out, _translated(text[len(base) :], pattern))


def _without_trailing_spaces(text: str) -> str:
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    return text


def _translated(text: str, pattern: str) -> str:
    """Return the expression of a pattern without its `!`.

    Atomic groups keep matching linear in every `*` and `**` but the last: what a piece matches
    first leaves most to those after it, so nothing is lost by never trying another place.
    """
    only_directories = text.endswith("/")
    body = text[:-1] if only_directories else text
    segments = body.removeprefix("/").split("/")
    if "/" not in body:
        segments.insert(0, "**")
    # Names between two `**`; without a `**` one run, which begins at the base.
    runs: list[list[str]] = [[]]
    for segment in segments:
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(_segment(segment, pattern))
    *before, last = ["/".join(run) for run in runs]
    out = ""
    for number, run in enumerate(before):
        if run:
            out += f"(?>(?:[^/]+/)*?{run}/)" if number else f"{run}/"
    if not before:
        out = last
    else:
        out += f"(?:[^/]+/)*{last}" if last else ".+"
    return f"(?:{out}){'/' if only_directories else '/?'}"


def _segment(segment: str, pattern: str) -> str:
    """Return the expression of one name, which matches no slash and nothing empty."""
    pieces = [""]
    at = 0
    while at < len(segment):
        character = segment[at]
        at += 1
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "[^/]"
        elif character == "[":
            expression, at = _class(segment, at, pattern)
            pieces[-1] += expression
        elif character == "\\":
            if at == len(segment):
                raise InvalidInput(f"the pattern {pattern!r} ends with a backslash")
            pieces[-1] += re.escape(segment[at])
            at += 1
        else:
            pieces[-1] += re.escape(character)
    first, *rest = pieces
    if not rest:
        return first
    between = "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1] if piece)
    return f"(?=[^/]){first}{between}[^/]*{rest[-1]}"


def _class(segment: str, at: int, pattern: str) -> tuple[str, int]:
    """Return the expression of the class whose `[` stands before `at`, and where it ends."""
    negated = segment.startswith(("!", "^"), at)
    at += negated
    members = ""
    first = True
    while first or not segment.startswith("]", at):
        first = False
        if at >= len(segment):
            raise InvalidInput(
                f"the pattern {pattern!r} has a [ that is never closed",
                hint="For the character itself write \\[.",
            )
        if segment.startswith("[:", at) and (end := segment.find(":]", at)) > 0:
            members += _CLASSES.get(segment[at + 2 : end], "")
            at = end + 2
            continue
        low, at = _member(segment, at)
        if segment.startswith("-", at) and not segment.startswith("-]", at):
            high, at = _member(segment, at + 1)
            # As git has it, a range from above to below holds nothing.
            members += f"{re.escape(low)}-{re.escape(high)}" if low <= high else ""
        else:
            members += re.escape(low)
    if not members:
        return ("[^/]" if negated else "(?!)"), at + 1
    return f"(?!/)[{'^' if negated else ''}{members}]", at + 1


def _member(segment: str, at: int) -> tuple[str, int]:
    if segment.startswith("\\", at):
        at += 1
    return segment[at : at + 1], at + 1
