"""Modules of security."""
