"""The pure ledger: rows, commands, rules. No clock, no randomness, no SQL, no HTTP, no logging."""

# These register their rules with `rules.apply`.
from cell.ledger import categories as categories
from cell.ledger import transactions as transactions
from cell.ledger import webhooks as webhooks
