"""Images and targets coming in."""
