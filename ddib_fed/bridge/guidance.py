"""How strongly decoding is steered towards a class; see `ddib_fed.guidance`."""

from ddib_fed.guidance import UNGUIDED, Guidance

__all__ = ["UNGUIDED", "Guidance"]
