"""The public API: one file per resource."""
