"""Commands of a node's operator."""
