"""Domains: synthetic point sets and files of points and pictures."""
