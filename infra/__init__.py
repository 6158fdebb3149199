"""Providers: what runs the processes and databases of a platform."""
