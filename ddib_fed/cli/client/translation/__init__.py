"""A translation of many files as the jobs that it takes: found, checked, submitted, written, resumed."""
