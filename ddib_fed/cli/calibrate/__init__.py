"""`ddib calibrate`: agree on how two domains correspond."""
