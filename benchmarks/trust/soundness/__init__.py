"""Attacks once more everything that an earlier attack found: `python -m benchmarks.trust.soundness`."""
