"""Training with differential privacy (DP-SGD): the key, gradients of single samples, the accountant, the trainer."""
