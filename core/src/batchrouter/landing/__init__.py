"""Lines → table: read the artifact, join it to the row snapshot, reconcile, commit.

`land.land_parts` is the whole of it; `sinks.open_sink` says where the table goes. Nothing is
imported here, so that the receipt's types cost no pyarrow.
"""
