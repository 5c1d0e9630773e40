"""Training on pictures: sources, batches, first weights, the task and its sample sheets."""
