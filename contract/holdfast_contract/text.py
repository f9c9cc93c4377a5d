"""Foreign text on terminals and in logs: names come from pods and may hold anything."""

from __future__ import annotations

import unicodedata

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Return `text` with everything escaped that could act on a terminal or break a line.

    Control, format (bidirectional overrides, zero width) and line separator characters become
    `\xNN`, `\uNNNN` or `\UNNNNNNNN`; bytes that were not UTF-8 (lone surrogates) become the
    `\xNN` they were; the backslash itself becomes `\\`, so that two names never look the same.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) not in _UNSAFE_CATEGORIES:
        return character
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
