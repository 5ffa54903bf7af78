"""The groups of settings, one module each: `training/settings.py` puts them together. No torch here."""
