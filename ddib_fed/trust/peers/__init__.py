"""Peers of a node: the files that introduce them, the store of the admitted, withdrawals, admission of callers."""
