"""The database that indexes the store: rebuildable."""
