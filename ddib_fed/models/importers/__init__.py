"""Models of other code to bundles; pickles are read in `checkpoints` alone, with `weights_only`."""
