"""Table → lines: sources, rendering, keys, parts, and the row snapshot that landing joins to."""
