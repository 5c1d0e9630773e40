"""Runs over a folder of files or a set of points: translations with records, a report and a contact sheet."""
