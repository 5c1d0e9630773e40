"""The target node: latent to picture, for admitted peers."""
