"""Tasks: what is done, one room per subject."""
