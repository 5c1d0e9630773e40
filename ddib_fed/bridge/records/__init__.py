"""The record of a translation, and reading those that earlier releases wrote."""
