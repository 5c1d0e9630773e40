"""Models on disk: bundles, manifests, normalisation, importers."""
