"""Entries of a snapshot and the pages that hold them."""
