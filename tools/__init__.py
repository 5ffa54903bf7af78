"""Developers' scripts, which are not installed: run them from the project's folder."""
