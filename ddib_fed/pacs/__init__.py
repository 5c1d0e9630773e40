"""DICOM over the network: studies from a PACS and back, and the route that translates what a PACS sends."""
