"""`cloister verify`: recomputes a tenant's ledger by a second path and compares."""
