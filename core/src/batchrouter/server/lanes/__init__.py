"""Lanes: how items reach a provider, and how its answers come back."""
