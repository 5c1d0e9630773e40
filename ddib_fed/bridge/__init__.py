"""Translation by two models: encoding to a latent, the latent check, decoding, and the driver of the solvers."""
