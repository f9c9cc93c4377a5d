"""Who may sign a manifest, and what a manifest may not contradict."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_contract.errors import (
    Conflict,
    Damaged,
    HoldfastError,
    InvalidInput,
    NotFound,
    Refused,
)
from holdfast_contract.format.manifest import snapshot_id
from holdfast_server.catalog import clients
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository import commit as commit_module
from holdfast_server.repository import sessions as sessions_module
from tests.support.commits import refused, sent
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, full_refs


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client": "shop/db-1"}, InvalidInput),
        ({"domain": noise("other", 16)}, InvalidInput),
        ({"identity": noise("other")}, Refused),
        ({"lineage": noise("other", 16)}, Refused),
        ({"refs_count": 9}, InvalidInput),
        ({"refs_set": noise("other")}, InvalidInput),
        ({"epoch_new": 3}, InvalidInput),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_a_manifest_that_contradicts_the_catalog_is_refused(
    pod: Pod, changes: dict[str, object], error: type[HoldfastError]
) -> None:
    if "domain" in changes:
        session = sent(pod, ids(1))
        pod.put_refs(session, full_refs(pod.domain, ids(1)))
        manifest = pod.manifest(ids(1))
        pod.put_manifest(session, manifest[:30] + b"?" + manifest[31:])
        with pytest.raises(Refused):
            pod.commit(session, 1)
        return
    assert type(refused(pod, ids(1), **changes)) is error
    assert pod.served.repository.history.count() == 0


def test_a_siblings_signature_is_refused(served: Served, pod: Pod) -> None:
    pod.identity_key = IdentityKey(noise("another sign"), noise("another box"))
    assert type(refused(pod, ids(1))) is Refused


def test_every_flipped_bit_of_a_manifest_is_refused(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "LISTS_MAX", 1000)
    wanted = ids(1)
    manifest = pod.manifest(wanted)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    for at in range(0, len(manifest) * 8, 53):
        changed = bytearray(manifest)
        changed[at // 8] ^= 1 << at % 8
        (name,) = served.repository.more_names(pod.name, session.id, "manifests", 1)
        pod.put_manifest(session, bytes(changed), name)
        with pytest.raises(HoldfastError):
            served.repository.commit(pod.name, session.id, manifest=name, refs=session.refs, seq=1)
    pod.put_manifest(session, manifest)
    assert pod.commit(session, 1).snapshot == snapshot_id(manifest)


def test_a_manifest_spoiled_in_the_store_is_damage(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    pod.put_manifest(session, pod.manifest(wanted))
    served.memory.objects[pod.place(ObjectKind.MANIFEST, session.manifest)] += b"x"
    with pytest.raises(Damaged):
        pod.commit(session, 1)


def test_objects_that_were_not_sent_cannot_be_committed(served: Served, pod: Pod) -> None:
    session = sent(pod, ids(1))
    with pytest.raises(Conflict):
        pod.commit(session, 1)
    pod.put_manifest(session, pod.manifest(ids(1)))
    with pytest.raises(Conflict):
        pod.commit(session, 1)
    with pytest.raises(NotFound):
        served.repository.commit(
            pod.name, session.id, manifest=session.refs, refs=session.refs, seq=1
        )


def test_a_client_revoked_meanwhile_commits_nothing(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = commit_module.Commits._attempt

    def revoked(*arguments: Any) -> Any:
        clients.revoke(served.catalog, pod.name)
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", revoked)
    assert type(refused(pod, ids(1))) is Refused


def test_a_new_identity_ends_what_the_old_one_signed(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    pod.put_manifest(session, pod.manifest(wanted))
    pod.enrol(previous=pod.identity, reason="key lost")
    with pytest.raises(Refused):
        pod.commit(session, 1)
