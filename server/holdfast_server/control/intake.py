"""From what somebody asks for to jobs: names resolved, and refused where no agent need be asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast_contract import limits
from holdfast_contract.errors import Refused, TooLarge, UsageError
from holdfast_contract.ids import ClientName, new_ulid
from holdfast_contract.protocol.control import JobState, RestoreItem
from holdfast_contract.protocol.http import (
    JobCreate,
    JobCreateBackup,
    JobCreateRestore,
    JobCreateVerify,
    SnapshotPath,
)
from holdfast_server.catalog import clients
from holdfast_server.catalog.clients import ClientRecord
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.jobs import JobRecord
from holdfast_server.catalog.scopes import Scope
from holdfast_server.control.orders import BackupSpec, RestoreSpec, Spec, VerifySpec, encode_spec
from holdfast_server.repository import Repository

ORDER_ROOM_BYTES = 64 * limits.KIB
"""Left in a control message for what an order has beside its spec."""


@dataclass(frozen=True)
class Intake:
    """Turns requests into queued jobs; blocks."""

    catalog: Catalog
    repository: Repository
    scope: Scope
    """Whose clients and snapshots exist for who asks."""

    def jobs(self, request: JobCreate) -> list[JobRecord]:
        """Return the jobs that `request` asks for, one for each client, not yet in the catalog.

        Raises:
            NotFound: a client or snapshot that is not there.
            Refused: a client of another domain than the snapshot's.
            Refused: a client that was revoked.
            UsageError, TooLarge: put wrongly, or too long for one message.
        """
        match request:
            case JobCreateBackup():
                spec = _backup_spec(request)
                return [
                    self._job("backup", client, spec) for client in dict.fromkeys(request.clients)
                ]
            case JobCreateRestore():
                return self._restores(request)
            case JobCreateVerify():
                item = self.items([SnapshotPath(snapshot=request.snapshot)])[0]
                target = self._target(request.to or item.client, [item])
                return [self._job("verify", target, VerifySpec(item=item), item.snapshot)]

    def items(self, asked: Iterable[SnapshotPath]) -> list[RestoreItem]:
        """Return parts of snapshots with the client of each.

        Raises:
            NotFound: no such snapshot.
            UsageError: a path that is not absolute.
        """
        owners: dict[str, str] = {}
        found = []
        for part in asked:
            if part.snapshot not in owners:
                owners[part.snapshot] = str(
                    self.repository.resolve(part.snapshot, self.scope).client
                )
            path = absolute(part.path_bytes())
            client = owners[part.snapshot]
            found.append(RestoreItem(bytes.fromhex(part.snapshot), client, path))
        return found

    def _restores(self, request: JobCreateRestore) -> list[JobRecord]:
        items = self.items(request.items)
        target = request.target_b64 if request.target_b64 is not None else request.target.encode()
        if target:
            absolute(target)
        by_client: dict[str, list[RestoreItem]] = defaultdict(list)
        for item in items:
            if not request.to:
                by_client[item.client].append(item)
        for client in dict.fromkeys(request.to):
            by_client[client] = items
        return [
            self._job(
                "restore",
                self._target(client, parts),
                _restore_spec(request, parts, target),
                parts[0].snapshot,
            )
            for client, parts in by_client.items()
        ]

    def _job(self, kind: str, client: str, spec: Spec, snapshot: bytes | None = None) -> JobRecord:
        name = self._client(client).name
        data = encode_spec(spec)
        if len(data) > limits.MESSAGE_BYTES_MAX - ORDER_ROOM_BYTES:
            raise TooLarge(
                f"a request of {len(data)} bytes is too long for one job",
                hint="name a folder above, or ask in several jobs",
            )
        return JobRecord(
            id=new_ulid(self.catalog.clock),
            kind=kind,
            client=name,
            state=JobState.QUEUED,
            created_ns=self.catalog.clock.now_ns(),
            spec=data,
            snapshot=snapshot,
        )

    def _target(self, client: str, items: list[RestoreItem]) -> str:
        """Return the client that is to work, if its domain is that of all `items`."""
        domain = self._client(client).name.domain
        for item in items:
            if ClientName(item.client).domain != domain:
                raise Refused(
                    f"{client} is not of the snapshot's domain",
                    hint="an agent holds its own domain's key only; use --local with the key file",
                )
        return client

    def _client(self, client: str) -> ClientRecord:
        row = clients.get(self.catalog, ClientName.parse(client), self.scope)
        if row.revoked_ns is not None:
            raise Refused(f"{row.name} was revoked", hint="enrol it again first")
        return row


def absolute(path: bytes) -> bytes:
    """Return `path` if it is absolute and plain.

    Raises:
        UsageError: it is not.
    """
    is_plain = b"\0" not in path and b".." not in path.split(b"/")
    if not path.startswith(b"/") or not is_plain:
        raise UsageError("a path is absolute and has no '..' in it")
    return path


def _backup_spec(request: JobCreateBackup) -> BackupSpec:
    paths = [path.encode() for path in request.paths] + list(request.paths_b64)
    if len(paths) > limits.PATHS_MAX:
        raise UsageError(f"at most {limits.PATHS_MAX} paths")
    for tag in request.tags:
        if not tag or len(tag.encode()) > limits.TAG_BYTES_MAX:
            raise UsageError(f"a tag has 1 to {limits.TAG_BYTES_MAX} bytes")
    return BackupSpec(
        paths=[absolute(path) for path in paths],
        excludes=request.excludes,
        tags=list(dict.fromkeys(request.tags)),
        limit_upload=request.limit_upload,
        dry_run=request.dry_run,
    )


def _restore_spec(
    request: JobCreateRestore, items: list[RestoreItem], target: bytes
) -> RestoreSpec:
    return RestoreSpec(
        items=items,
        target=target,
        include=request.include,
        exclude=request.exclude,
        strip=request.strip,
        overwrite=request.overwrite,
        delete=request.delete,
        special=request.special,
        dry_run=request.dry_run,
        verify=request.verify,
        limit_download=request.limit_download,
    )
