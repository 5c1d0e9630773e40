"""The source node: picture to latent, for its own clients."""
