"""Datasets made by code, carried by packages, or brought by the user in a published form."""
