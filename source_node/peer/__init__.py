"""Calls to the target of a job: its connection, one Decode call, and the latents that go into it."""
