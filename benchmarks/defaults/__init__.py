"""`python -m benchmarks defaults`: which losses, weighting and rate a run should have where nobody says them, judged on data
sets that did not choose them. `sets` has the data, `candidates` what is compared and how it is decided, `runs` trains,
`rule` decides, `report` fills docs/reports/defaults.md.
"""
