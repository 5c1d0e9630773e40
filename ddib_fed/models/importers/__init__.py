"""Imports models of other code as bundles; pickles are read in `checkpoints` alone, with `weights_only`."""
