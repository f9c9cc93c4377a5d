"""From a snapshot to files: plan, fetch, open, write, always under the target."""
