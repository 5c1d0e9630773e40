"""gRPC calls: the mapping of errors, checked answers, addresses."""
