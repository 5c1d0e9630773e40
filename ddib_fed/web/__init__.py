"""Pages on loopback: the researcher's (`ddib web`) and the operator's (`ddib status --web`)."""
