"""Deployments: everything a person runs to stand the system up."""
