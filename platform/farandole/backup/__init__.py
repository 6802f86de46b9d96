"""Backups: every store and every stream in a directory, and out of it into an empty place."""
