"""Calibrations at a node: agreed on with a peer, checked at each use, shown to the operator."""
