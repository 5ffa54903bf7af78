"""The data set that comes with the package: `glyphs.npz`, reading it, and the source that `--data` names."""
