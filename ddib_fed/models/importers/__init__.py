"""Imports models of other code as bundles; only `checkpoints` reads pickles, with `weights_only`."""
