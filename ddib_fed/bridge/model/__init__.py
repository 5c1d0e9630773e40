"""A bundle that is ready to encode and decode, and what it can be asked for."""
