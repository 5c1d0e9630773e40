"""The researcher's page on loopback (`ddib web`)."""
