"""Colour transfer between two photographs (DDIB, section 4.3): an experiment of the paper."""
