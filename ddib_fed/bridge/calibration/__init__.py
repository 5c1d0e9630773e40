"""Calibration: the small, explicit piece of information on how two domains correspond."""
