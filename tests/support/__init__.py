"""What tests share: generated trees, an independent comparator, a world of real processes.

Imported as `tests.support.<module>`: the repository's root is on pytest's path.
"""
