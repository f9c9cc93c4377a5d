"""What lives beside the volume: identity, journal, cache."""
