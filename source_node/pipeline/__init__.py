"""One job's items from the spool through both models and back into the spool."""
