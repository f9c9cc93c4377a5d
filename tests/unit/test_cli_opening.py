"""Opening data here: several snapshots behind one source, patience with a server, key files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import format_key_file, new_key_material, parse_key_file
from holdfast_agent.crypto.wraps import parse_private_file, parse_recipient_file
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_cli import opening
from holdfast_cli.domain_keys import OpenedKey, new_domain, new_recipient
from holdfast_cli.opening import Interrupt, Patience, SnapshotsSource
from holdfast_contract.errors import Cancelled, Damaged, Refused, Unreachable
from holdfast_contract.format.domain import DomainBody, decode_domain_body, split_domain
from holdfast_contract.format.layout import Room
from holdfast_contract.protocol.http import DomainRow
from tests.support.cli_api import TIME, Answer, Done, listing, run, snapshot
from tests.support.handclock import HandClock
from tests.support.samples import IDENTITY_RECORD, MANIFEST, MATERIAL, noise

NOW_NS = 1_800_000_000 * 10**9
ONE, TWO, THREE = (noise(name) for name in ("one", "two", "three"))


class Grant:
    """The chunks of one snapshot."""

    def __init__(self, *ids: int) -> None:
        self.ids = {bytes([number]) for number in ids}
        self.asked: list[list[int]] = []
        self.rooms: list[Room] = []

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        self.asked.append([one[0] for one in ids])
        self.rooms.append(room)
        for one in ids:
            status = ChunkStatus.HERE if one in self.ids else ChunkStatus.NOT_THERE
            yield FetchedChunk(one, status, "object", 0, b"sealed")

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        self.asked.append([chunk[0]])

    def manifest(self, snapshot: bytes) -> bytes:
        return snapshot

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        return hash

    def damaged(self) -> Iterator[bytes]:
        return iter(())


def found(source: SnapshotsSource, *ids: int) -> list[tuple[int, bool]]:
    return [
        (chunk.id[0], chunk.status is ChunkStatus.HERE)
        for chunk in source.fetch([bytes([number]) for number in ids])
    ]


def test_chunks_of_any_snapshot_come_in_the_order_asked_for() -> None:
    grants = [Grant(1, 2), Grant(2, 3), Grant(4)]
    source = SnapshotsSource(list(zip((ONE, TWO, THREE), grants, strict=True)))
    numbers = (4, 1, 3, 9, 2)
    assert found(source, *numbers) == [(4, True), (1, True), (3, True), (9, False), (2, True)]


def test_the_snapshot_that_was_opened_last_is_asked_first() -> None:
    one, two = Grant(1), Grant(2)
    source = SnapshotsSource([(ONE, one), (TWO, two)])
    assert source.manifest(TWO) == TWO
    assert found(source, 2, 2) == [(2, True), (2, True)]
    assert (one.asked, two.asked) == ([], [[2, 2]])


def test_what_a_snapshot_lacks_is_asked_in_one_request_and_remembered() -> None:
    one, two = Grant(1), Grant(2, 3, 4)
    source = SnapshotsSource([(ONE, one), (TWO, two)])
    found(source, 2, 3, 4)
    assert two.asked == [[2, 3, 4]]
    found(source, 3)
    assert one.asked == [[2, 3, 4]]


def test_memory_is_handed_on_only_where_no_chunk_comes_before_its_turn() -> None:
    def room(size: int) -> bytearray:
        return bytearray(size)

    one, two = Grant(1), Grant(2)
    list(SnapshotsSource([(ONE, one)]).fetch([b"\1"], room))
    assert one.rooms == [room]
    list(SnapshotsSource([(ONE, one), (TWO, two)]).fetch([b"\2", b"\1"], room))
    assert (one.rooms, two.rooms) == ([room, bytearray], [bytearray])


# --- patience
def test_a_server_that_is_away_is_asked_again_until_patience_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, cancel = HandClock(NOW_NS), Interrupt()
    monkeypatch.setattr(cancel, "wait", lambda seconds: False)
    attempts = Patience(cancel, clock).begin()
    attempts.failed(Unreachable("gone"))
    clock.sleep(opening.AWAY_SECONDS - 1)
    attempts.failed(Unreachable("gone"))
    clock.sleep(2)
    with pytest.raises(Unreachable):
        attempts.failed(Unreachable("gone"))


def test_a_refusal_is_final_and_an_interrupt_ends_the_waiting() -> None:
    cancel = Interrupt()
    attempts = Patience(cancel, HandClock(NOW_NS)).begin()
    with pytest.raises(Refused):
        attempts.failed(Refused("no"))
    cancel.set()
    with pytest.raises(Cancelled):
        attempts.failed(Unreachable("gone"))
    with pytest.raises(Cancelled):
        Patience(cancel, HandClock(NOW_NS)).begin()
    assert cancel.is_set()
    assert cancel.wait(0)


# --- keys
def opened(record: bytes) -> list[bytes]:
    return [wrap.recipient for wrap in decode_domain_body(split_domain(record).body).wraps]


def row(key: OpenedKey, **changes: object) -> DomainRow:
    fields: dict[str, object] = {"name": "shop", "domain": key.domain, "created": TIME}
    fields |= {"revision": 1, "recipients": [], "clients": 0, "snapshots": 0}
    return DomainRow(**(fields | changes))  # type: ignore[arg-type]


class Domain:
    """A domain on a server, its files in a folder, and an outsider's recipient pair."""

    def __init__(self, top: Path) -> None:
        self.top = top
        private, recipient = new_recipient()
        made = new_domain("shop", [recipient], HandClock(NOW_NS), with_recovery=True)
        self.record = made.record
        self.key = OpenedKey.of_file(made.key_file)
        for name, text in (
            ("key", made.key_file),
            ("recovery", made.recovery_file),
            ("private", private),
            ("recipient", recipient),
        ):
            (top / name).write_text(text)

    def answers(self, **more: Answer) -> dict[str, Answer]:
        """Return what the server says."""
        return {
            "GET /v1/domains": listing(row(self.key)),
            "GET /v1/domains/shop": row(self.key),
            "GET /v1/domains/shop/record": self.record,
            "GET /v1/snapshots": listing(),
            **more,
        }

    def recover(self, recovery: str, answers: dict[str, Answer] | None, *words: str) -> Done:
        """Run `key recover`."""
        options = ["--domain", "shop", "--recovery", self.top / recovery]
        out = ["--key-out", self.top / "new"]
        return run("key", "recover", *options, *out, *words, answers=answers)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return Domain(tmp_path)


def test_key_check_names_the_domain(domain: Domain) -> None:
    done = run("key", "check", domain.top / "key", "--json", answers=domain.answers())
    assert done.json() == {
        "domain": "shop",
        "id": domain.key.domain,
        "key_check": domain.key.key_check,
        "epochs": [1],
    }
    told = run("key", "check", domain.top / "key", answers=domain.answers()).out
    assert told.startswith("the key of domain shop (")


def test_key_check_refuses_another_domains_key(domain: Domain) -> None:
    (domain.top / "other").write_text(format_key_file(new_key_material()))
    assert run("key", "check", domain.top / "other", answers=domain.answers()).code == 12
    forged = new_domain("shop", [], HandClock(NOW_NS), with_recovery=False)
    answers = domain.answers(**{"GET /v1/domains/shop/record": forged.record})
    assert run("key", "check", domain.top / "key", answers=answers).code in (12, 13)


@pytest.mark.parametrize("recovery", ["recovery", "private"])
def test_a_lost_key_comes_back(domain: Domain, recovery: str) -> None:
    done = domain.recover(recovery, domain.answers(), "--json")
    assert done.code == 0, done.err
    assert (domain.top / "new").read_text() == (domain.top / "key").read_text()
    assert (domain.top / "new").stat().st_mode & 0o777 == 0o600
    assert done.json()["key_check"] == domain.key.key_check
    assert done.json()["proved_by"] is None
    assert domain.recover(recovery, domain.answers()).code == 11


def test_a_recovery_file_needs_no_server_and_a_private_file_does(domain: Domain) -> None:
    assert domain.recover("private", None).code == 2
    assert not (domain.top / "new").exists()
    away: dict[str, Answer] = {"GET /v1/domains/shop/record": Unreachable("gone")}
    assert domain.recover("private", away).code == 2
    assert domain.recover("recovery", away).code == 0


def test_a_recovery_file_of_another_domain_is_refused(domain: Domain) -> None:
    words = ["--domain", "other", "--recovery", domain.top / "recovery"]
    done = run("key", "recover", *words, "--key-out", domain.top / "new", answers={})
    assert done.code == 12
    assert not (domain.top / "new").exists()


def test_a_private_file_of_nobodys_wrap_is_refused(domain: Domain) -> None:
    (domain.top / "mine").write_text(new_recipient()[0])
    assert domain.recover("mine", domain.answers()).code == 12
    assert domain.recover("recipient", domain.answers()).code == 2
    assert not (domain.top / "new").exists()


def test_a_private_file_takes_no_key_whose_record_is_changed(domain: Domain) -> None:
    changed = domain.record[:-1] + bytes([domain.record[-1] ^ 1])
    answers = domain.answers(**{"GET /v1/domains/shop/record": changed})
    assert domain.recover("private", answers).code in (12, 13)
    assert not (domain.top / "new").exists()


def test_a_server_cannot_put_its_own_key_in_place_of_a_recovered_one(domain: Domain) -> None:
    recipient = (domain.top / "recipient").read_text()
    forged = new_domain("shop", [recipient], HandClock(NOW_NS), with_recovery=False)
    answers = domain.answers(**{"GET /v1/domains/shop/record": forged.record})
    done = domain.recover("recovery", answers)
    assert done.code == 0
    assert (domain.top / "new").read_text() == (domain.top / "key").read_text()


def test_a_recovered_key_is_proved_on_a_snapshot(domain: Domain) -> None:
    """The samples' snapshot is of another domain: the key does not open it, and is not written."""
    identity = IdentityKey(noise("sign"), noise("box"))
    assert len(identity.sign_public) == 32
    answers = domain.answers(
        **{
            "GET /v1/snapshots": listing(snapshot(id="cd" * 32, domain="other"), snapshot()),
            f"GET /v1/snapshots/{snapshot().id}/manifest": MANIFEST,
        }
    )
    from holdfast_cli.domain_keys import identity_of

    answers[f"GET /v1/identities/{identity_of(MANIFEST)}"] = IDENTITY_RECORD
    assert domain.recover("recovery", answers).code == 12
    assert not (domain.top / "new").exists()


def test_the_right_key_proves_itself() -> None:
    key = OpenedKey(MATERIAL)
    key.prove(MANIFEST, IDENTITY_RECORD)
    broken = MANIFEST[:-1] + bytes([MANIFEST[-1] ^ 1])
    with pytest.raises(Damaged):
        key.prove(broken, IDENTITY_RECORD)


def test_recipients_come_and_go(domain: Domain) -> None:
    private, recipient = new_recipient()
    (domain.top / "ops").write_text(recipient)
    (domain.top / "ops.private").write_text(private)
    sent: list[bytes] = []

    def put(asked: object) -> DomainRow:
        import base64

        sent.append(base64.b64decode(asked.body["record"]))  # type: ignore[attr-defined]
        return row(domain.key, revision=2, recipients=["ab", "cd", "ef"])

    answers = domain.answers(**{"PUT /v1/domains/shop/record": put})
    words = ["key", "recipients", "add", domain.top / "ops", "--key-file", domain.top / "key"]
    done = run(*words, answers=answers)
    assert done.out == "domain shop: 3 recipients, revision 2\n"
    assert parse_recipient_file(recipient) in opened(sent[0])
    assert decode_domain_body(split_domain(sent[0]).body).revision == 2
    answers["GET /v1/domains/shop/record"] = sent[0]
    assert run(*words, answers=answers).code == 11
    assert domain.recover("ops.private", answers).code == 0
    digits = parse_recipient_file(recipient).hex()[:8].upper()
    gone = ["key", "recipients", "remove", digits, "--key-file", domain.top / "key"]
    assert run(*gone, answers=answers).code == 0
    assert parse_recipient_file(recipient) not in opened(sent[1])
    assert len(opened(sent[1])) == 2
    for wrong in (digits[:5], "00" * 32):
        gone[3] = wrong
        assert run(*gone, answers=answers).code == 10


def test_sharing_between_replicas_is_set_in_the_domain_record(domain: Domain) -> None:
    sent: list[DomainBody] = []

    def put(asked: object) -> DomainRow:
        import base64

        record = base64.b64decode(asked.body["record"])  # type: ignore[attr-defined]
        assert opened(record)
        sent.append(decode_domain_body(split_domain(record).body))
        return row(domain.key, revision=2, share_references=sent[-1].share_references)

    answers = domain.answers(**{"PUT /v1/domains/shop/record": put})
    words = ["domain", "set", "shop", "--key-file", domain.top / "key", "--share-references"]
    assert "share references  off" in run(*words, "off", answers=answers).out
    assert "share references  on" in run(*words, "on", answers=answers).out
    assert [(body.revision, body.share_references) for body in sent] == [(2, False), (2, True)]
    words[2] = "bank"
    assert run(*words, "off", answers=answers).code == 12
    assert run(*words, "perhaps", answers=answers).code == 2
    assert len(sent) == 2


def test_a_new_pair_fits_together_and_is_told_apart(tmp_path: Path) -> None:
    words = ["--private-out", tmp_path / "p", "--out", tmp_path / "r"]
    done = run("key", "recipients", "create", *words, "--json", answers={})
    assert done.code == 0
    assert len(parse_private_file((tmp_path / "p").read_text())) == 32
    assert done.json()["recipient"] == parse_recipient_file((tmp_path / "r").read_text()).hex()
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "p").read_text().split()[1] not in done.out
    assert run("key", "recipients", "create", *words, answers={}).code == 11


def test_a_new_domains_files_hold_the_key_that_seals_its_record() -> None:
    made = new_domain("shop", [], HandClock(NOW_NS), with_recovery=False)
    assert made.recovery_file == ""
    key = OpenedKey(parse_key_file(made.key_file))
    key.check_record(made.record)
    assert opened(made.record) == []
    assert made.key_file not in repr(made)
