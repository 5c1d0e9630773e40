"""Turns points into a trained model's bundle; a killed run can be resumed and ends bit for bit the same.

The rule: nothing here prints, parses a command line or opens a socket.
"""
