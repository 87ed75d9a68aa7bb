"""The embedded router: every endpoint of the Batches API over local or simulated lanes.

It knows nothing of the client: what both must agree on is the wire, and one signing scheme.
"""
