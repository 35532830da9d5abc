"""Tenants, their audiences by name, priorities, fair shares and leases."""

import re
import time
import uuid
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """From 0001; what is there becomes the tenant "local"'s."""
    connection = op.get_bind()
    last_number = _last_number(connection)
    op.drop_index("ix_operations_state", "operations")
    # As PostgreSQL names it; SQLite's has no name.
    names = {"uq": "%(table_name)s_%(column_0_name)s_key"}
    options = {"sqlite_autoincrement": True}
    with op.batch_alter_table("operations", naming_convention=names, table_kwargs=options) as table:
        table.drop_constraint("operations_request_id_key", type_="unique")
        table.add_column(sa.Column("tenant", sa.String(128), nullable=False, server_default="local"))
        table.add_column(sa.Column("audience_id", sa.String(64), nullable=False, server_default=""))
        table.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="2"))
        table.add_column(sa.Column("due", sa.Float, nullable=False, server_default="0"))
        table.add_column(sa.Column("fence", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("owner", sa.String(64)))
        table.add_column(sa.Column("lease_until", sa.Float))
        table.create_unique_constraint("operations_tenant_request_id_key", ["tenant", "request_id"])
    op.execute("UPDATE operations SET audience_id = id, due = created")
    op.create_index("operations_queue", "operations", ["state", "tenant", "due", "number"])
    op.create_index("operations_listing", "operations", ["tenant", "number"])
    _keep_last_number(connection, last_number)
    op.create_table(
        "audiences",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("audience_id", sa.String(64), nullable=False),
        sa.Column("published", sa.Float),
        sa.UniqueConstraint("tenant", "audience_id", name="audiences_tenant_audience_id_key"),
    )
    op.execute(
        "INSERT INTO audiences (id, tenant, audience_id, published) SELECT id, tenant, audience_id, "
        "CASE WHEN state = 'SUCCEEDED' THEN ended END FROM operations "
        "WHERE state IN ('QUEUED', 'RUNNING', 'SUCCEEDED')"
    )
    _adopt_audiences(connection)
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("start", sa.Float),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("accepted", sa.Integer, nullable=False),
    )
    op.create_table(
        "installation",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("bound", sa.Boolean, nullable=False),
        sa.Column("run_seconds", sa.Float),
    )
    added = sa.text("INSERT INTO installation (id, bound) VALUES (:id, :bound)")
    connection.execute(added, {"id": uuid.uuid4().hex, "bound": False})
    op.execute("DELETE FROM schema_version")
    op.execute("INSERT INTO schema_version (version) VALUES (2)")  # so that a server from before Alembic refuses it


def _last_number(connection: sa.Connection) -> int | None:
    """The highest number ever given, also to an operation that is gone: a copied table would forget it."""
    if connection.dialect.name != "sqlite":
        return None
    found: int | None = connection.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'operations'"))
    return found


def _keep_last_number(connection: sa.Connection, number: int | None) -> None:
    if number is not None:
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'operations'"))
        added = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('operations', :number)")
        connection.execute(added, {"number": number})


def _adopt_audiences(connection: sa.Connection) -> None:
    """Audiences whose operation was deleted were known by their folder beside the database alone."""
    database = connection.engine.url.database
    if connection.dialect.name != "sqlite" or not database:
        return
    known = set(connection.scalars(sa.text("SELECT id FROM audiences")))
    added = sa.text("INSERT INTO audiences (id, tenant, audience_id, published) VALUES (:id, 'local', :id, :now)")
    for folder in (Path(database).parent / "audiences").glob("*"):
        if re.fullmatch("[0-9a-f]{32}", folder.name) and folder.name not in known:
            connection.execute(added, {"id": folder.name, "now": time.time()})
