"""The security officer's page: what a node may do, what it did, and what is left to sign."""
