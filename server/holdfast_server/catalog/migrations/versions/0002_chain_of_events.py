"""Events become a chain: each row's link covers the row and the link before it."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from alembic import op
from blake3 import blake3

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_CONTEXT = b"holdfast/1/event\0"
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CHAINED = ("key", "time_ns", "kind", "client", "job", "message", "details")
_PAGE_ROWS = 10_000

_events = sa.table("events", *map(sa.column, _CHAINED), sa.column("link", sa.LargeBinary()))
_head = sa.table("event_head", sa.column("id"), sa.column("last"), sa.column("link"))


def upgrade() -> None:
    """Chain the events that there are."""
    op.create_table(
        "event_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("link", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_event_head"),
    )
    op.add_column("events", sa.Column("link", sa.LargeBinary(length=32), nullable=True))
    last, link = _chain()
    op.execute(sa.insert(_head).values(id=1, last=last, link=link))
    with op.batch_alter_table("events") as table:
        table.alter_column("link", existing_type=sa.LargeBinary(length=32), nullable=False)


def _chain() -> tuple[int, bytes]:
    """Give every event its link; return the last one's id and link."""
    connection = op.get_bind()
    last, link = 0, bytes(32)
    query = sa.select(*_events.c).order_by(_events.c.key).limit(_PAGE_ROWS)
    while page := connection.execute(query.where(_events.c.key > last)).all():
        for row in page:
            link = blake3(_CONTEXT + link + msgspec.msgpack.encode(tuple(row[:-1]))).digest()
            change = sa.update(_events).where(_events.c.key == row[0])
            connection.execute(change.values(link=link))
        last = page[-1][0]
    return last, link
