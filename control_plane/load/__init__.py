"""`cloister load`: posts a CSV of historical transactions through the public API, repeatably."""
