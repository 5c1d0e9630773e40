"""Training of models of points and pictures, and of classifiers; runs are resumable bit for bit."""
