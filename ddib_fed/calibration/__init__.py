"""What ties two domains: aggregates, the fit of a map, the signed calibration."""
