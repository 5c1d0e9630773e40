"""What someone can learn from what crosses: pictures from latents, members from published histograms."""
