"""One upload session: what engine.ports.Uploads asks, over HTTP."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import msgspec

from holdfast_agent.ports import Cancel, Committed, Missing
from holdfast_agent.transport.http import Body, HttpClient
from holdfast_agent.transport.limiter import RateLimit
from holdfast_agent.transport.retry import Repeating, call
from holdfast_contract import limits
from holdfast_contract.errors import Conflict, InvalidInput, MissingChunks
from holdfast_contract.protocol.http import (
    CommitAnswer,
    CommitRequest,
    MissingAnswer,
    NamesAnswer,
    SessionAnswer,
)

_T = TypeVar("_T")
_COPY_BYTES = 256 << 10
_NAMES_AT_ONCE = 16
_NAMES_TRIED_MAX = 2 * limits.RESERVED_NAMES_MAX
"""So many names in a row cannot all have been used before a restart."""


class SessionUploads:
    """Uploads of one backup job. `put_pack` may be called by several threads at once."""

    def __init__(
        self,
        client: HttpClient,
        job: str,
        *,
        repeating: Repeating,
        limit: RateLimit,
        cancel: Cancel,
    ) -> None:
        self._client = client
        self._repeating = repeating
        self._limit = limit
        self._cancel = cancel
        self._lock = threading.Lock()
        self._sent = 0
        answer = self._json("POST", f"/agent/v1/jobs/{job}/session", SessionAnswer)
        self._session = f"/agent/v1/sessions/{answer.session}"
        self._names = {
            "packs": deque(answer.packs),
            "refs": deque([answer.refs]),
            "manifests": deque([answer.manifest]),
        }
        self._refs = self._manifest = ""

    @property
    def bytes_sent(self) -> int:
        """Bodies of packs, refs and manifests sent so far, retries included."""
        return self._sent

    def have(self, ids: Sequence[bytes], epoch_min: int) -> list[bool]:
        """Tell for each id whether the server holds a live copy of at least that epoch."""
        found: list[bool] = []
        for start in range(0, len(ids), limits.HAVE_IDS_MAX):
            batch = ids[start : start + limits.HAVE_IDS_MAX]
            path = f"{self._session}/have?epoch_min={epoch_min}"
            body = Body.of(b"".join(batch))
            answer = self._call("POST", path, body)
            if len(answer) != len(batch) or answer.strip(b"\0\1"):
                raise InvalidInput("the server's answer to have is malformed")
            found += [bool(flag) for flag in answer]
        return found

    def put_pack(self, buffers: Sequence[bytes | memoryview], length: int) -> None:
        """Send one pack; return when it is durable."""
        self._put("packs", "packs", Body(length, lambda: self._counted(buffers)))

    def put_refs(self, body: BinaryIO, length: int) -> None:
        """Send the refs object from the start of `body`."""

        def parts() -> Iterator[memoryview]:
            body.seek(0)
            return self._counted(iter(lambda: body.read(_COPY_BYTES), b""))

        self._refs = self._put("refs", "refs", Body(length, parts))

    def put_manifest(self, data: bytes) -> None:
        """Send the manifest."""
        self._manifest = self._put(
            "manifests", "manifest", Body(len(data), lambda: self._counted([data]))
        )

    def commit(self, seq: int) -> Committed | Missing:
        """Commit what was put last."""
        request = CommitRequest(manifest=self._manifest, refs=self._refs, seq=seq)
        try:
            answer = self._json("POST", f"{self._session}/commit", CommitAnswer, Body.json(request))
        except MissingChunks as refused:
            return self._missing(refused)
        return Committed(bytes.fromhex(answer.snapshot), answer.time_ns)

    def _missing(self, refused: MissingChunks) -> Missing:
        try:
            page = msgspec.convert(refused.details, MissingAnswer)
        except msgspec.ValidationError as exc:
            raise InvalidInput("the server's answer is malformed") from exc
        missing, damaged = set(page.missing), set(page.damaged)
        while page.next and len(missing) + len(damaged) < limits.AVOIDED_IDS_MAX:
            before = len(missing) + len(damaged)
            page = self._json("GET", f"{self._session}/missing?after={page.next}", MissingAnswer)
            missing |= set(page.missing)
            damaged |= set(page.damaged)
            if len(missing) + len(damaged) == before:
                raise InvalidInput("the server's list of missing chunks goes round in circles")
        return Missing(
            frozenset(map(bytes.fromhex, missing)), frozenset(map(bytes.fromhex, damaged))
        )

    def _put(self, kind: str, route: str, body: Body) -> str:
        """Put `body` under a fresh reserved name; return the name."""
        for attempt in range(_NAMES_TRIED_MAX):
            name = self._name(kind)
            path = f"{self._session}/{route}/{name}"
            try:
                self._call("PUT", path, body)
            except Conflict:
                # The name already holds other bytes, sent before a restart: never overwrite.
                if attempt == _NAMES_TRIED_MAX - 1:
                    raise
                continue
            return name
        raise AssertionError("the last attempt returns or raises")

    def _name(self, kind: str) -> str:
        with self._lock:
            if not self._names[kind]:
                count = _NAMES_AT_ONCE if kind == "packs" else 1
                path = f"{self._session}/names?kind={kind}&count={count}"
                self._names[kind].extend(self._json("POST", path, NamesAnswer).names)
            return self._names[kind].popleft()

    def _json(self, method: str, path: str, kind: type[_T], body: Body | None = None) -> _T:
        reply = self._call(method, path, body)
        try:
            return msgspec.json.decode(reply, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidInput("the server's answer is malformed") from exc

    def _call(self, method: str, path: str, body: Body | None) -> bytes:
        return call(self._repeating, lambda: self._client.call(method, path, body=body).body)

    def _counted(self, parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
        for piece in self._limit.slices(parts, self._cancel):
            yield piece
            with self._lock:
                self._sent += len(piece)
