"""Webhooks out: the outbox's events, signed, to addresses that were checked."""
