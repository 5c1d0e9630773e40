"""Worker processes: of a command that shares its pieces, and pools that carry trajectories out for a node."""
