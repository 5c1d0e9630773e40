"""Decoders of picture files."""
