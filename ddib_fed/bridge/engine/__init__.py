"""What carries legs out: trajectories of rows, executors that take them, and streams of items over an executor."""
