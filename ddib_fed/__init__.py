"""Image translation between two institutions that share neither pictures nor weights (federated DDIB)."""

__version__ = "0.1.0"
