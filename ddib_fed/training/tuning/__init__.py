"""`ddib model tune`: learns where the solver steps on one model, from that model alone."""
