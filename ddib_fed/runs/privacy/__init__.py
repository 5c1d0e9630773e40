"""Attacks an owner's own latents and samples, and says what an attacker gets."""
