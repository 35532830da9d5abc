"""Runs that ended with their server are counted, so that a job that kills it is not started for ever."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """From 0005."""
    op.add_column("operations", sa.Column("lost", sa.Integer, nullable=False, server_default="0"))
