"""HTTP API: one resource per file."""
