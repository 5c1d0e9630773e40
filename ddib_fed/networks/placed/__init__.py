"""Networks placed for inference: where and in which types they compute, and how their calls are run."""
