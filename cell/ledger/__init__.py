"""The pure ledger: rows, commands, rules. No clock, no randomness, no SQL, no HTTP, no logging."""
