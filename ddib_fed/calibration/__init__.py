"""Modules of calibration."""
