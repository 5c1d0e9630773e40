"""Trials beside the product: differential privacy, distillation, attacks. Nothing else may import this package."""
