"""Distilling a model into a flow map: where its paths start, the paths, what is learned of them, and how well."""
