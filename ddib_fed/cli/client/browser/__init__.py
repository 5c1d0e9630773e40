"""`ddib translate` behind a page of the browser: the same path, shown there instead of in a terminal."""
