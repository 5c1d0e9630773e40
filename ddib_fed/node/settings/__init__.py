"""Parts of node.toml: where the files are, and the table of training."""
