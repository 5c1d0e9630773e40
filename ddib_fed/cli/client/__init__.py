"""Commands of a client of its institution's source node."""
