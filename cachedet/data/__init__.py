"""Pictures and targets coming in."""
