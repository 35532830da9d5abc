"""The operations database's versions and the ways from each to the next, for Alembic; `service.database` runs them."""
