"""What lives beside the volume: identity, memory of the history, journal of jobs, tree cache."""
