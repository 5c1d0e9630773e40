"""Optimiser steps and their state, whatever is learned: processes, checkpoints, averages, batches made ahead."""
