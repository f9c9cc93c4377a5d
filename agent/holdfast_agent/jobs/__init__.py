"""Use cases of the agent: backup, restore, browse, verify."""
