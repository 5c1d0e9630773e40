"""What a latent looks like, against what a model's own latents look like."""
