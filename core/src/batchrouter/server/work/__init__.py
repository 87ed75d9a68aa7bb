"""The durable work: a batch is planned, sent in chunks, merged and settled."""
