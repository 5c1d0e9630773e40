"""Large objects in chunks: written to a stream, joined and checked again."""
