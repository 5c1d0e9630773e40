"""Networks that the diffusers library computes, and their configurations."""
