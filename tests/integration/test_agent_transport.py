"""The agent's HTTP side against a server that misbehaves on purpose, on loopback."""

from __future__ import annotations

import http.client
import io
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.ports import ChunkStatus, Committed, Missing
from holdfast_agent.transport.downloads import HttpChunks, agent_routes
from holdfast_agent.transport.http import KEPT_MAX, Body, HttpClient, Kept
from holdfast_agent.transport.limiter import RateLimit
from holdfast_agent.transport.retry import Credential, NoRepeat, Retrying
from holdfast_agent.transport.uploads import SessionUploads
from holdfast_contract.clock import SystemClock
from holdfast_contract.errors import (
    Conflict,
    InvalidInput,
    NoSpace,
    NotFound,
    Unreachable,
)
from holdfast_contract.ids import new_ulid

IDS = [bytes([n]) * 32 for n in range(1, 8)]
Route = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Hands every request to the script of the test."""

    protocol_version = "HTTP/1.1"
    server: Scripted

    def handle_any(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.seen.append((self.command, self.path, body))
        self.server.route(self, body)

    def answer(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def problem(self, status: int, code: str, **details: object) -> None:
        row = {"type": "about:blank", "title": code, "status": status, "code": code}
        self.answer(
            status, json.dumps(row | {"detail": f"it is {code}", "details": details}).encode()
        )

    def cut(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        return


for _verb in ("GET", "PUT", "POST", "DELETE"):
    setattr(Handler, f"do_{_verb}", Handler.handle_any)


class Scripted(ThreadingHTTPServer):
    """A server whose answers a test decides."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.seen: list[tuple[str, str, bytes]] = []
        self.route: Route = lambda handler, body: handler.answer(200)

    def handle_error(self, *_: object) -> None:
        return

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    thread = threading.Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield scripted
    scripted.shutdown()
    thread.join()
    scripted.server_close()


def client_of(server: Scripted, kept: Kept | None = None) -> HttpClient:
    return HttpClient(
        server.url,
        ssl.create_default_context(),
        bearer=lambda: "hfc_token",
        user_agent="test",
        kept=kept,
    )


@pytest.fixture
def client(server: Scripted) -> Iterator[HttpClient]:
    made = client_of(server)
    yield made
    made.close()


def soon(_: float, __: float) -> float:
    return 0.01


def retrying(cancel: JobCancel) -> Retrying:
    credential = Credential()
    credential.set("token")
    return Retrying(credential, cancel, SystemClock(), soon)


def test_a_problem_document_becomes_the_error_that_its_code_names(
    server: Scripted, client: HttpClient
) -> None:
    server.route = lambda handler, _: handler.problem(404, "not-found", object="packs/x")
    with pytest.raises(NotFound) as caught:
        client.call("GET", "/x")
    assert caught.value.details == {"object": "packs/x"}


def test_an_answer_that_is_no_problem_document_is_told_by_its_status(
    server: Scripted, client: HttpClient
) -> None:
    server.route = lambda handler, _: handler.answer(502, b"<html>")
    with pytest.raises(Unreachable):
        client.call("GET", "/x")
    server.route = lambda handler, _: handler.answer(418, b"teapot")
    with pytest.raises(InvalidInput):
        client.call("GET", "/x")


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_without_a_word(
    server: Scripted, client: HttpClient
) -> None:
    client.call("GET", "/one")

    def closing(handler: Handler, _: bytes) -> None:
        handler.answer(200, b"two")
        handler.close_connection = True

    server.route = closing
    assert client.call("GET", "/two").body == b"two"
    assert client.call("GET", "/three").body == b"two"


def test_the_next_job_takes_up_the_connection_of_the_one_before(server: Scripted) -> None:
    ports: list[int] = []

    def route(handler: Handler, _: bytes) -> None:
        ports.append(handler.client_address[1])
        handler.answer(200)

    server.route = route
    kept = Kept()
    for path in ("/one", "/two"):
        made = client_of(server, kept)
        made.call("GET", path)
        made.close()
    assert ports[0] == ports[1]
    aborted = client_of(server, kept)
    aborted.call("GET", "/three")
    aborted.abort()
    aborted.close()
    kept.close()
    last = client_of(server, kept)
    last.call("GET", "/four")
    last.close()
    assert ports[0] == ports[2] != ports[3]
    kept.close()


def test_no_more_connections_are_kept_than_allowed(server: Scripted) -> None:
    kept = Kept()
    clients = [client_of(server, kept) for _ in range(KEPT_MAX + 1)]
    for made in clients:
        made.call("GET", "/x")
    for made in clients:
        made.close()
    found = []
    while (connection := kept.take()) is not None:
        found.append(connection)
        connection.close()
    assert len(found) == KEPT_MAX


@pytest.mark.parametrize(("length", "pieces"), [(1, 1), (1000, 1), (100_000, 2)])
def test_a_small_body_leaves_in_one_piece_with_its_head(
    server: Scripted,
    client: HttpClient,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    pieces: int,
) -> None:
    sent: list[bytes] = []
    send = http.client.HTTPConnection.send

    def noted(connection: http.client.HTTPConnection, data: bytes) -> None:
        sent.append(data)
        send(connection, data)

    monkeypatch.setattr(http.client.HTTPConnection, "send", noted)
    client.call("PUT", "/x", body=Body.of(bytes(length)))
    client.call("GET", "/y")
    assert len(sent) == pieces + 1
    assert [len(body) for _, _, body in server.seen] == [length, 0]


def test_a_server_that_cuts_a_fresh_connection_is_unreachable(
    server: Scripted, client: HttpClient
) -> None:
    server.route = lambda handler, _: handler.cut()
    with pytest.raises(Unreachable):
        client.call("GET", "/x")


def test_a_body_of_unknown_length_arrives_whole(server: Scripted, client: HttpClient) -> None:
    parts = [b"one", b"two" * 1000, b"three"]
    client.call("POST", "/answers", body=Body(None, lambda: iter(parts)))
    assert server.seen[-1][2] == b"".join(parts)


def test_an_aborted_client_breaks_what_is_under_way(server: Scripted, client: HttpClient) -> None:
    begun, release = threading.Event(), threading.Event()

    def hang(handler: Handler, _: bytes) -> None:
        begun.set()
        release.wait(10)
        handler.cut()

    server.route = hang

    def abort() -> None:
        begun.wait(10)
        client.abort()

    timer = threading.Thread(target=abort)
    timer.start()
    with pytest.raises(Unreachable):
        client.call("GET", "/x")
    release.set()
    timer.join()
    with pytest.raises(Unreachable):
        client.call("GET", "/y")


# --- chunk streams
def framed(chunk_id: bytes, status: int = 0, sealed: bytes = b"sealed") -> bytes:
    name = b"packs/d/p"
    head = chunk_id + bytes([status]) + len(name).to_bytes(2, "little")
    head += (7).to_bytes(4, "little") + len(sealed).to_bytes(4, "little")
    return head + name + sealed


def chunks_of(client: HttpClient, *, patient: bool = False) -> HttpChunks:
    cancel = JobCancel()
    limit = RateLimit(SystemClock())
    repeating = retrying(cancel) if patient else NoRepeat()
    return HttpChunks(client, agent_routes("G"), cancel=cancel, limit=limit, repeating=repeating)


def asked(body: bytes) -> list[bytes]:
    return [body[at : at + 32] for at in range(0, len(body), 32)]


def test_a_broken_stream_goes_on_behind_the_last_whole_chunk(
    server: Scripted, client: HttpClient
) -> None:
    def two_then_cut(handler: Handler, body: bytes) -> None:
        whole = b"".join(framed(one) for one in asked(body))
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[: 2 * len(framed(IDS[0])) + 5])
        handler.cut()

    server.route = two_then_cut
    got = [chunk.id for chunk in chunks_of(client, patient=True).fetch(IDS[:4])]
    assert got == IDS[:4]
    assert [len(asked(body)) for _, _, body in server.seen] == [4, 2]


def test_chunks_come_in_order_with_their_status_and_object(
    server: Scripted, client: HttpClient
) -> None:
    def route(handler: Handler, body: bytes) -> None:
        ids = asked(body)
        handler.answer(200, framed(ids[0]) + framed(ids[1], 2, b"") + framed(ids[2], 1, b""))

    server.route = route
    got = list(chunks_of(client).fetch(IDS[:3]))
    assert [chunk.status for chunk in got] == [
        ChunkStatus.HERE,
        ChunkStatus.DAMAGED,
        ChunkStatus.NOT_THERE,
    ]
    assert (got[0].object, got[0].offset, bytes(got[0].sealed)) == ("packs/d/p", 7, b"sealed")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(framed(IDS[1]), id="another chunk"),
        pytest.param(framed(IDS[0], 9), id="unknown status"),
        pytest.param(framed(IDS[0]) + b"more", id="longer than asked"),
        pytest.param(IDS[0] + b"\0" + b"\xff\xff" + bytes(8), id="name beyond the limit"),
        pytest.param(IDS[0] + b"\0\0\0" + bytes(4) + b"\xff" * 4, id="chunk beyond the limit"),
    ],
)
def test_a_stream_outside_the_format_is_refused(
    server: Scripted, client: HttpClient, bad: bytes
) -> None:
    server.route = lambda handler, _: handler.answer(200, bad)
    with pytest.raises(InvalidInput):
        list(chunks_of(client).fetch(IDS[:1]))


def test_damaged_ids_come_page_by_page_until_an_empty_one(
    server: Scripted, client: HttpClient
) -> None:
    def route(handler: Handler, _: bytes) -> None:
        after = handler.path.partition("after=")[2]
        left = [one for one in IDS if one.hex() > after][:3]
        handler.answer(200, b"".join(left))

    server.route = route
    assert list(chunks_of(client).damaged()) == IDS


# --- uploads
class Session:
    """The upload routes of one job, with scripted failures."""

    def __init__(self, server: Scripted) -> None:
        self.names = iter(new_ulid() for _ in range(1000))
        self.stored: dict[str, bytes] = {}
        self.failures: list[Callable[[Handler], None]] = []
        self.commits = 0
        server.route = self.route

    def route(self, handler: Handler, body: bytes) -> None:
        if handler.command == "PUT" and self.failures:
            self.failures.pop(0)(handler)
            return
        path = handler.path.partition("?")[0]
        if path.endswith("/session"):
            packs = [next(self.names), next(self.names)]
            row = {"session": next(self.names), "packs": packs, "refs": next(self.names)}
            handler.answer(200, json.dumps(row | {"manifest": next(self.names)}).encode())
        elif path.endswith("/names"):
            handler.answer(200, json.dumps({"names": [next(self.names)]}).encode())
        elif path.endswith("/have"):
            handler.answer(200, bytes(one[0] % 2 for one in asked(body)))
        elif path.endswith("/commit"):
            self.commit(handler)
        elif path.endswith("/missing"):
            page = {"missing": [IDS[1].hex()], "damaged": [IDS[2].hex()], "next": ""}
            handler.answer(200, json.dumps(page).encode())
        elif self.stored.setdefault(path, body) != body:
            handler.problem(409, "conflict")
        else:
            handler.answer(204)

    def commit(self, handler: Handler) -> None:
        self.commits += 1
        if self.commits == 1:
            handler.problem(
                409, "missing-chunks", missing=[IDS[0].hex()], damaged=[], next=IDS[0].hex()
            )
        else:
            row = {"snapshot": IDS[3].hex(), "time_ns": 5}
            handler.answer(200, json.dumps(row).encode())


def uploads(client: HttpClient) -> SessionUploads:
    cancel = JobCancel()
    return SessionUploads(
        client, "JOB", repeating=retrying(cancel), limit=RateLimit(SystemClock()), cancel=cancel
    )


def test_a_pack_whose_acknowledgement_is_lost_is_sent_again_under_the_same_name(
    server: Scripted, client: HttpClient
) -> None:
    session = Session(server)
    sending = uploads(client)
    session.failures = [
        lambda handler: handler.cut(),
        lambda handler: handler.problem(503, "unreachable"),
    ]
    sending.put_pack([b"head", memoryview(b"body")], 8)
    names = [path for command, path, _ in server.seen if command == "PUT"]
    assert len(names) == 3 and len(set(names)) == 1
    assert session.stored[names[0]] == b"headbody"
    assert sending.bytes_sent == 24, "retries count"


def test_a_name_that_holds_other_bytes_is_never_overwritten(
    server: Scripted, client: HttpClient
) -> None:
    session = Session(server)
    sending = uploads(client)
    session.failures = [lambda handler: handler.problem(409, "conflict")]
    sending.put_pack([b"pack"], 4)
    names = [path for command, path, _ in server.seen if command == "PUT"]
    assert len(set(names)) == 2


def test_reserved_names_run_out_and_are_asked_for(server: Scripted, client: HttpClient) -> None:
    session = Session(server)
    sending = uploads(client)
    for number in range(4):
        sending.put_pack([bytes([number])], 1)
    assert len(session.stored) == 4


def test_have_answers_in_the_order_of_the_ids(server: Scripted, client: HttpClient) -> None:
    Session(server)
    assert uploads(client).have(IDS, 1) == [bool(one[0] % 2) for one in IDS]


def test_a_malformed_answer_to_have_is_refused(server: Scripted, client: HttpClient) -> None:
    Session(server)
    sending = uploads(client)
    server.route = lambda handler, _: handler.answer(200, b"\2" * len(IDS))
    with pytest.raises(InvalidInput):
        sending.have(IDS, 1)


def test_a_refused_commit_brings_all_pages_and_the_next_one_goes_under_new_names(
    server: Scripted, client: HttpClient
) -> None:
    session = Session(server)
    sending = uploads(client)
    for attempt in (b"first", b"second"):
        sending.put_refs(io.BytesIO(attempt), len(attempt))
        sending.put_manifest(attempt)
        answer = sending.commit(1)
        if attempt == b"first":
            assert answer == Missing(frozenset(IDS[:2]), frozenset([IDS[2]]))
    assert answer == Committed(IDS[3], 5)
    assert len(session.stored) == 4


def test_a_full_server_is_told_as_such(server: Scripted, client: HttpClient) -> None:
    server.route = lambda handler, _: handler.problem(507, "no-space")
    with pytest.raises(NoSpace):
        client.call("PUT", "/x", body=Body.of(b"pack"))


def test_a_conflict_keeps_its_class(server: Scripted, client: HttpClient) -> None:
    server.route = lambda handler, _: handler.problem(409, "conflict")
    with pytest.raises(Conflict):
        client.call("PUT", "/x", body=Body.of(b"pack"))
