"""Importers of foreign checkpoints, found through entry points: users of `ddib_fed.importing` alone."""
