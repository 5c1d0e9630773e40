"""Translations that translations are compared with: baselines without a network, the bridge between Gaussians."""
