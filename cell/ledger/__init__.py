"""The pure ledger: rows, commands, rules. No clock, no randomness, no SQL, no HTTP, no logging."""

from cell.ledger import transactions as transactions  # registers its rules with rules.apply
from cell.ledger import webhooks as webhooks
