"""The demo: the main job from nothing, on the embedded PostgreSQL."""
