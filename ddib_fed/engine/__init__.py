"""A party that encodes and decodes: model, gate, continuous batches, executors, records."""
