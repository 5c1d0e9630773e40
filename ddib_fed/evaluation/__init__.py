"""Modules of evaluation."""
