"""Building the embedded data set of glyphs from fonts."""
