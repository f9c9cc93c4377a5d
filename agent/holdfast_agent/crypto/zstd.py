"""zstd from one buffer into another.

The package's own classes return fresh memory, whose page faults take as long as decompressing into
it, or go through the buffers of a stream, which copy everything once more. Its binding of the C
library does neither. It is part of the same wheel and has no promise to stay, so the version is
bounded above; it needs cffi, as cryptography does.
"""

from __future__ import annotations

from typing import Any, Final

from zstandard._cffi import ffi, lib  # type: ignore[import-not-found] # no stubs

from holdfast_contract.format.layout import Buffer

_LEVEL: Final = 100
_WINDOW_LOG: Final = 101
"""Numbers of ZSTD_cParameter: the library never changes them."""
_WINDOW_LOG_FAST: Final = 18
"""At levels that look for few matches anyway a window that stays in the core's cache saves a
twentieth of the time; chunks grow by 0.02 %."""
_LEVEL_FAST_MAX: Final = 1


class ZstdFailed(Exception):
    """Not one sound frame of the length that was said."""


class Compressor:
    """Compresses at one level; for one thread. Calls release the GIL."""

    def __init__(self, level: int) -> None:
        self._context: Any = ffi.gc(lib.ZSTD_createCCtx(), lib.ZSTD_freeCCtx)
        self._set(_LEVEL, level)
        if level <= _LEVEL_FAST_MAX:
            self._set(_WINDOW_LOG, _WINDOW_LOG_FAST)

    def _set(self, parameter: int, value: int) -> None:
        assert not lib.ZSTD_isError(lib.ZSTD_CCtx_setParameter(self._context, parameter, value))

    def compress_into(self, plaintext: Buffer, room: memoryview) -> int:
        """Compress into `room`; return the length of the frame, 0 where it would be longer."""
        with (
            ffi.from_buffer("char[]", plaintext) as source,
            ffi.from_buffer("char[]", room, require_writable=True) as target,
        ):
            done = lib.ZSTD_compress2(self._context, target, len(room), source, len(plaintext))
        return 0 if lib.ZSTD_isError(done) else int(done)


class Decompressor:
    """Decompresses; for one thread. Calls release the GIL."""

    def __init__(self) -> None:
        self._context: Any = ffi.gc(lib.ZSTD_createDCtx(), lib.ZSTD_freeDCtx)

    def decompress_into(self, payload: Buffer, room: memoryview) -> None:
        """Fill `room` with the content of the one frame that `payload` is.

        Raises:
            ZstdFailed: it is not one frame, or not sound, or of another length. What stands in
                `room` then is nothing.
        """
        with (
            ffi.from_buffer("char[]", payload) as source,
            ffi.from_buffer("char[]", room, require_writable=True) as target,
        ):
            declared = lib.ZSTD_getFrameContentSize(source, len(payload))
            if declared != len(room):
                raise ZstdFailed("the frame declares another length")
            if lib.ZSTD_findFrameCompressedSize(source, len(payload)) != len(payload):
                raise ZstdFailed("not one zstd frame")
            done = lib.ZSTD_decompressDCtx(self._context, target, len(room), source, len(payload))
        if done != len(room):
            raise ZstdFailed("not one sound zstd frame")
