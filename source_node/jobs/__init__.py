"""The durable job store of a source node: database, spool, staging, events."""
