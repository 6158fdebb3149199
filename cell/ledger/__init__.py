"""The pure ledger: rows, commands, rules. No clock, no randomness, no SQL, no HTTP, no logging."""

# Imported for the rules that they register with `rules.apply`.
from cell.ledger import bulk as bulk
from cell.ledger import transactions as transactions
