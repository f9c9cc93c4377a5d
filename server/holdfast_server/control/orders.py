"""What a job was asked for, as the catalog keeps it, and the message that orders it.

A spec holds what an administrator typed (paths in clear, said in docs/security.md) and, once the
job was sent, which snapshots its agent may read: after a restart of the server the job goes on with
the same rights.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Struct

from holdfast_contract.errors import InternalError
from holdfast_contract.protocol.control import (
    Backup,
    Overwrite,
    Reference,
    Restore,
    RestoreItem,
    Verify,
)


class BackupSpec(Struct, frozen=True, kw_only=True, tag_field="kind", tag="backup"):
    """A backup; `parent` and `references` are set when the job is sent."""

    paths: list[bytes]
    excludes: list[str]
    tags: list[str]
    limit_upload: int = 0
    dry_run: bool = False
    parent: bytes | None = None
    references: list[bytes] = []
    """Snapshots of relatives."""


class RestoreSpec(Struct, frozen=True, kw_only=True, tag_field="kind", tag="restore"):
    """A restore on one client."""

    items: list[RestoreItem]
    target: bytes
    include: list[str]
    exclude: list[str]
    strip: bool
    overwrite: Overwrite
    delete: bool
    special: bool
    dry_run: bool
    verify: bool
    limit_download: int


class VerifySpec(Struct, frozen=True, kw_only=True, tag_field="kind", tag="verify"):
    """A verify of one snapshot."""

    item: RestoreItem


Spec = BackupSpec | RestoreSpec | VerifySpec
Order = Backup | Restore | Verify

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Spec] = msgspec.msgpack.Decoder(Spec)


def encode_spec(spec: Spec) -> bytes:
    """Return the form in which the catalog keeps `spec`."""
    return _encoder.encode(spec)


def decode_spec(data: bytes) -> Spec:
    """Return the spec of a job.

    Raises:
        InternalError: the catalog holds something else.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InternalError("the request of a job in the catalog cannot be read") from exc


def is_dry_run(spec: Spec) -> bool:
    """Tell whether the job is only to tell what it would do."""
    return not isinstance(spec, VerifySpec) and spec.dry_run


def granted_snapshots(spec: Spec) -> list[bytes]:
    """Return the snapshots that the agent may read while the job runs."""
    match spec:
        case BackupSpec(parent=parent, references=references):
            return [*([] if parent is None else [parent]), *references]
        case RestoreSpec(items=items):
            return list(dict.fromkeys(item.snapshot for item in items))
        case VerifySpec(item=item):
            return [item.snapshot]


@dataclass(frozen=True)
class History:
    """Where a client's history stands when a backup of it is sent."""

    head_seq: int
    head: bytes
    parent: Reference | None
    references: list[Reference]
    """Snapshots of relatives."""
    damaged: int
    """Damaged chunks of parent and references."""
    epoch_min: int
    """Lowest epoch of the domain's keys: chunks of older ones cannot be opened any more."""
    is_accepted: bool
    """An administrator accepted this head although the agent may remember a newer one."""


def backup_order(job: str, spec: BackupSpec, history: History) -> Backup:
    """Return the order of a backup."""
    return Backup(
        job=job,
        paths=spec.paths,
        excludes=spec.excludes,
        tags=spec.tags,
        head_seq=history.head_seq,
        head=history.head,
        parent=history.parent,
        references=history.references,
        damaged=history.damaged,
        epoch_min=history.epoch_min,
        limit_upload=spec.limit_upload,
        dry_run=spec.dry_run,
        accepted=history.is_accepted,
    )


def restore_order(job: str, spec: RestoreSpec) -> Restore:
    """Return the order of a restore."""
    return Restore(
        job=job,
        items=spec.items,
        target=spec.target,
        include=spec.include,
        exclude=spec.exclude,
        strip=spec.strip,
        overwrite=spec.overwrite,
        delete=spec.delete,
        special=spec.special,
        dry_run=spec.dry_run,
        verify=spec.verify,
        limit_download=spec.limit_download,
    )


def verify_order(job: str, spec: VerifySpec) -> Verify:
    """Return the order of a verify."""
    return Verify(job=job, item=spec.item)
