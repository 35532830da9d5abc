"""Audiences that expire by their own time, are deleted step by step, and lose users who opted out."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """From 0002."""
    op.add_column("operations", sa.Column("audience_gone", sa.String(16)))
    op.add_column("operations", sa.Column("audience_gone_at", sa.Float))
    op.add_column("audiences", sa.Column("campaign", sa.Text, nullable=False, server_default=""))
    op.add_column("audiences", sa.Column("ttl", sa.Float))
    op.add_column("audiences", sa.Column("expires", sa.Float))
    op.add_column("audiences", sa.Column("deleted", sa.Float))
    op.add_column("audiences", sa.Column("opted_out_through", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(
        "UPDATE audiences SET campaign = "
        "coalesce((SELECT campaign FROM operations WHERE operations.id = audiences.id), '')"
    )
    op.create_index("audiences_listing", "audiences", ["tenant", "published", "id"])
    op.create_table(
        "opt_outs",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.create_index("opt_outs_of_tenant", "opt_outs", ["tenant", "number"])
    op.create_index("opt_outs_by_number", "opt_outs", ["number"])
