"""Metrics: what is read from a server, how often, and how it is kept."""
