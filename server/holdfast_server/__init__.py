"""The Holdfast server."""
