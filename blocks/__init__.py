"""Blocks: the outside. Configuration, credentials and connections; they speak primitives."""
