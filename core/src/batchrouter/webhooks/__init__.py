"""Webhooks in: verify a delivery, remember it, and wake the runs that wait for it.

A delivery is a hint that something changed; the API's state decides. `signing` proves who
sent it, `inbox` keeps it where other processes see it, `receiver` is the HTTP end.
"""
