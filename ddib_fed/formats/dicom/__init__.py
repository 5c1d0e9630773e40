"""DICOM: a series becomes items, and results a derived series."""
