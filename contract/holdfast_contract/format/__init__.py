"""Bytes at rest: sealed chunk, pack, refs, manifest, identity, domain, journal."""
