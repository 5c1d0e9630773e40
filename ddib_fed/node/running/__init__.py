"""The running node: its start, its checks, its answers to the operator, and its end."""
