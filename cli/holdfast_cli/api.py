"""The server's API as the command uses it: typed answers, paged lists, errors of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from holdfast_cli.settings import VERSION, Place
from holdfast_contract.errors import InvalidInput, UsageError
from holdfast_contract.protocol import http

if TYPE_CHECKING:
    from holdfast_agent.transport.http import Stream

_T = TypeVar("_T")
_TOKEN_BYTES_MAX = 4096


def read_small_file(path: Path, what: str) -> str:
    """Return the text of a small file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError as exc:
        raise UsageError(f"cannot read {what} {path}: {exc.strerror}") from exc


class Api:
    """One server, one token."""

    def __init__(self, place: Place) -> None:
        # Sockets and TLS are a third of a start; `--help` and `version` need neither.
        from holdfast_agent.transport.http import Body, HttpClient, trusting

        token = read_small_file(place.token_file, "the token file")[:_TOKEN_BYTES_MAX].split()
        # A file that holds no token is sent as one all the same: the server says what is wrong.
        bearer = token[0] if token and token[0].isascii() else "none"
        self._body_of = Body.json
        self.http = HttpClient(
            place.server,
            trusting(place.ca),
            bearer=lambda: bearer,
            user_agent=f"holdfast/{VERSION}",
        )

    def get(self, path: str, kind: type[_T], **query: object) -> _T:
        """Return the answer to GET as a `kind`; query values of None are left out."""
        return _decoded(self.http.call("GET", _with_query(path, query)).body, kind)

    def raw(self, path: str) -> bytes:
        """Return the bytes that GET answers."""
        return self.http.call("GET", path).body

    def send(self, method: str, path: str, kind: type[_T], body: object = None) -> _T:
        """Send a request body as JSON and return the answer as a `kind`."""
        with _sendable():
            encoded = self._body_of(body) if body is not None else None
        return _decoded(self.http.call(method, path, body=encoded).body, kind)

    def delete(self, path: str) -> None:
        """Delete what `path` names."""
        self.http.call("DELETE", path)

    def rows(
        self, path: str, kind: type[_T], *, most: int = 0, **query: str | int | None
    ) -> Iterator[_T]:
        """Yield the rows of a paged list, at most `most` of them (0: all)."""
        after: str | None = None
        count = 0
        while True:
            page = self.get(path, http.Listing, **{**query, "after": after})
            for item in page.items:
                yield row_of(item, kind)
                count += 1
                if count == most:
                    return
            if not page.next:
                return
            after = page.next

    def ask(self, query: http.QueryCreate) -> AbstractContextManager[Stream]:
        """Return the streamed answer of a query."""
        with _sendable():
            body = self._body_of(query)
        return self.http.stream("POST", "/v1/queries", body=body)

    def snapshot(self, reference: str) -> http.SnapshotRow:
        """Return the snapshot that a reference names.

        Raises:
            NotFound, Ambiguous: none, or several.
        """
        with _sendable():
            path = f"/v1/snapshots/{quote(reference, safe='')}"
        return self.get(path, http.SnapshotRow)


def client_path(name: str) -> str:
    """Return the route of a client.

    Raises:
        UsageError: not DOMAIN/NAME.
    """
    domain, slash, rest = name.partition("/")
    if not slash or not domain or not rest or "/" in rest:
        raise UsageError(
            f"not a client: {name!r}", hint="a client is DOMAIN/NAME, such as shop/web-0"
        )
    with _sendable():
        return f"/v1/clients/{quote(domain, safe='')}/{quote(rest, safe='')}"


def check_client_known(api: Api, name: str | None) -> None:
    """Return when there is such a client, or none was named: an empty list means two things.

    Raises:
        NotFound: the server does not know it.
        UsageError: not DOMAIN/NAME.
    """
    if name is not None:
        api.get(client_path(name), http.ClientRow)


def row_of(item: object, kind: type[_T]) -> _T:
    """Return one item of a list as a `kind`.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return msgspec.convert(item, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise InvalidInput("the server's answer is malformed", hint=str(exc)) from exc


def path_argument(text: str) -> dict[str, Any]:
    """Return the fields that carry a path which a person typed."""
    data = os.fsencode(text)
    fields: dict[str, Any] = dict(http.path_fields(data))
    if "path_b64" in fields:
        fields["path_b64"] = data
    return fields


def _with_query(path: str, query: dict[str, object]) -> str:
    given = {key: str(value) for key, value in query.items() if value not in (None, "")}
    with _sendable():
        return f"{path}?{urlencode(given)}" if given else path


@contextmanager
def _sendable() -> Iterator[None]:
    """Say what cannot be sent: bytes of a command line that are no text.

    Raises:
        UsageError: a pattern, tag, name or reference with such bytes; a path may have them.
    """
    try:
        yield
    except UnicodeEncodeError as exc:
        raise UsageError(
            f"not UTF-8: {os.fsencode(exc.object).decode('utf-8', 'replace')[:120]}",
            hint="a path may have other bytes in it, but no pattern, tag, name or reference",
        ) from exc


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidInput("the server's answer is malformed", hint=str(exc)) from exc
