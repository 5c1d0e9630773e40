"""Formats of the field, client side: files become items of pixels alone, results files of the same format."""
