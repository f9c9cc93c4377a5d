"""What a route is: a row from which the route and its part of the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from holdfast_server.api.rights import Right

if TYPE_CHECKING:
    from holdfast_server.api.calls import Call


class Audience(Enum):
    """Who may call a route, and what it proves itself with."""

    OPEN = "open"
    """Anybody."""
    PEOPLE = "people"
    """A token of `admin.token` or `holdfast token create`."""
    NEWCOMER = "newcomer"
    """An enrolment token."""
    PROOF = "proof"
    """A proof on the channel itself: the handler sees to it."""
    AGENT = "agent"
    """The token of a live control connection."""


@dataclass(frozen=True)
class RawBody:
    """A request body that is not JSON, read whole before the handler runs."""

    bytes_max: int
    seconds: float = 60.0
    media: str = "application/octet-stream"


@dataclass(frozen=True)
class StreamedBody:
    """A request body that the handler reads piece by piece."""

    media: str = "application/octet-stream"


@dataclass(frozen=True)
class RawAnswer:
    """An answer that is not JSON: bytes, or a stream that the handler writes."""

    media: str = "application/octet-stream"
    is_streamed: bool = False


@dataclass(frozen=True)
class ListingOf:
    """An answer of type Listing with rows of this type."""

    row: type


@dataclass(frozen=True)
class Parameter:
    """A parameter behind the question mark."""

    name: str
    summary: str
    kind: str = "string"
    """JSON schema type: string, integer or boolean."""


LIMIT = Parameter("limit", "most rows of the answer (at most 1,000)", "integer")
AFTER = Parameter("after", "`next` of the page before")
PAGED = (LIMIT, AFTER)

Handler = Callable[["Call"], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """One route."""

    method: str
    path: str
    audience: Audience
    handler: Handler
    request: Any = None
    """A msgspec type (JSON), RawBody, StreamedBody, or None: no body is read."""
    answer: Any = None
    """A msgspec type (JSON), ListingOf, RawAnswer, or None: 204."""
    query: tuple[Parameter, ...] = ()
    status: int = 200
    """Of a good answer; 204 where there is no answer."""
    right: Right | None = None
    """What a person's token must allow; None for all other audiences."""
    is_of_server: bool = False
    """It concerns the whole server: not for a token that is limited to domains."""

    def __post_init__(self) -> None:
        assert (self.right is not None) == (self.audience is Audience.PEOPLE), self.path

    @property
    def is_act(self) -> bool:
        """Tell whether a call changes something: then it stands in the trail of events."""
        return self.right in (Right.RUN, Right.ADMINISTER) and self.method != "GET"

    @property
    def summary(self) -> str:
        """Return one line for the OpenAPI document: the first of the handler's docstring."""
        text = (self.handler.__doc__ or "").strip()
        return text.splitlines()[0] if text else ""

    @property
    def operation(self) -> str:
        """Return the name of the operation: the handler's."""
        return getattr(self.handler, "__name__", self.path).strip("_")
