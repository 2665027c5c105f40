"""Monitoring on the command line: status, statements, alerts, and the collector in the foreground."""
