"""Modules of engine."""
