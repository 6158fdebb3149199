"""The pure ledger: rows, commands, rules. No clock, no randomness, no SQL, no HTTP, no logging."""

# Each registers its rules with rules.apply.
from cell.ledger import statements as statements
from cell.ledger import transactions as transactions
from cell.ledger import webhooks as webhooks
