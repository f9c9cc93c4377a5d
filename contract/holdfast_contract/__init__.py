"""What agent and server must agree on: bytes at rest, messages, errors, limits."""
