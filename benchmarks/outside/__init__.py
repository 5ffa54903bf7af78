"""`python -m benchmarks outside`: is the default for pictures ever below a plain loop around another library's losses, and are
its learning rate and its P x K the right ones? `plan` was written before any test figure was read. `loop` is the plain loop,
`order` says what is run when, `runs` trains, `rule` and `rises` decide, `report` fills docs/reports/outside.md.
"""
