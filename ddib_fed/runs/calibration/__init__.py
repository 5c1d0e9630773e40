"""Calibrations made and evaluated with pictures of folders or of shipped domains."""
