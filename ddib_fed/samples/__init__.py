"""Kinds of sample, points and pictures: read, fit to a model, restore, write."""
