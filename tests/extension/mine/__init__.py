"""What another author adds to ddib-fed, with its face alone."""
