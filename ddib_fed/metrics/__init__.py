"""Figures about points, pictures and latents."""
