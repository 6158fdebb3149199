"""The local provider: embedded Postgres and supervised child processes on one machine."""
