"""Where the router keeps what it knows: rows in SQL, manifests and artifacts as objects."""
