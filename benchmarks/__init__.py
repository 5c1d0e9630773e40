"""Measurements of the project, run as `python -m benchmarks...`; no part of what is installed.

A package of its own name, because opacus installs one that is called the same.
"""
