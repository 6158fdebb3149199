"""The pure ledger: rows, commands, rules. No clock, no randomness, no SQL, no HTTP, no logging."""

# Each registers its rules with rules.apply.
from cell.ledger import bulk as bulk
from cell.ledger import categories as categories
from cell.ledger import partial_posts as partial_posts
from cell.ledger import reversals as reversals
from cell.ledger import settlement_drafts as settlement_drafts
from cell.ledger import settlements as settlements
from cell.ledger import statements as statements
from cell.ledger import transactions as transactions
from cell.ledger import webhooks as webhooks
