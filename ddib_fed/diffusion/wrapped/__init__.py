"""Denoisers around a denoiser: guided, clipped, in another basis of the channels, over the tiles of a scene."""
