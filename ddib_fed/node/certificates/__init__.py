"""The certificates of a running node: issuing to others of the institution, renewing its own, how long they stand."""
