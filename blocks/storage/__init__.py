"""Places where backups lie."""
