"""Flows: when, and in what order."""
