"""The record of a translation."""
