"""Training loops that survive a kill."""
