"""Alerts: which readings are a fault, since when, and when a person must hear of it."""
