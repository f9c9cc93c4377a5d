"""Agents, server, store and catalog in one process, under a seeded world with virtual time.

One thread runs at any moment, and who goes on is drawn from the seed: the same seed is the same
run. Real are the agent (service, jobs, engine, transport) and the server (API, control, repository,
catalog, local store); simulated is what they stand on: network, disk, clock, threads, randomness.
"""
