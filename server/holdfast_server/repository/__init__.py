"""Accept packs, read ranges, commit snapshots."""
