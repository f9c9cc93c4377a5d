"""The Holdfast agent."""
