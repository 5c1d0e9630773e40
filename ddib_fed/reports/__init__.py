"""Pages, contact sheets, tables and plots."""
