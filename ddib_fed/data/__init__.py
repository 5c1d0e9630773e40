"""Points and pictures: file formats, units, fit and restore, folders, domains that ship or are made by code."""
