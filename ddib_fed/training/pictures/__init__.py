"""Turns pictures into a trained model's bundle: a UNet, any number of processes, resumed bit for bit.

The rule: as in `ddib_fed.training`; what is random for a sample depends on (seed, step, sample), never on how the
batch is cut into microbatches or spread over processes.
"""
