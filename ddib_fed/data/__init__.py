"""Modules of data."""
