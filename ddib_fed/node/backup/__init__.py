"""Backups of a node: one private file with its configuration and state, made while it runs, checked and restored."""
