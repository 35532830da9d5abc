"""Opt-outs have a time, so that it can be told for how long one has not been carried out."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """From 0004. What was said before counts from now on."""
    op.add_column("opt_outs", sa.Column("created", sa.Float, nullable=False, server_default=repr(time.time())))
