"""The client of a source node; imports no torch."""
