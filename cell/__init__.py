"""The cell: one ledger deployment on its own Postgres. Imports no other package of the project."""
