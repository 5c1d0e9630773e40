"""`ddib audit`: reads, follows, exports and verifies the node's audit log."""
