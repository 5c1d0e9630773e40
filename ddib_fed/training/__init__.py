"""Training of models of points and pictures, and of classifiers; runs are resumable bit for bit.

Nothing here prints, parses a command line or opens a socket.
"""
