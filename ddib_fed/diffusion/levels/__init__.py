"""The noise levels at which a solver evaluates the network: by formula, learned, or those of the public code."""
