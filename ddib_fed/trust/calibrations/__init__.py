"""Calibrations signed by two nodes, and where a node keeps them."""
