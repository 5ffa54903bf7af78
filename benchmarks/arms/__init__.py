"""`python -m benchmarks arms`: does an ensemble win by the diversity of its losses and heads, once single losses of the same
width and cost have the same tricks? `plan` was written before any figure existed. `runs` trains, `after` does what needs a
trained model only, `rule` decides, `report` fills docs/reports/arms.md.
"""
