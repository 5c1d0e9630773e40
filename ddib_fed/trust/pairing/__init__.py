"""Two operators admit each other's nodes with a short code that one reads to the other by telephone."""
