"""The administrator's command."""
