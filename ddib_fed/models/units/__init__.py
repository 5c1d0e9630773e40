"""The units of a model: normalisation, and maps of channels from one model's units to another's."""
