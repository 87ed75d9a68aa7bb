"""The life of a batch, from the manifest that comes in to the money that is charged."""
