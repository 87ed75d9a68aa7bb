"""The HTTP surface: routes, keys, errors, limits, logs."""
