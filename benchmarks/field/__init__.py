"""`python -m benchmarks field`: losses and ensembles of them on the user's data, by the protocol of "A Metric Learning Reality
Check". `arms` has what is compared, `stages` runs it, `estimate` says beforehand how long that takes, `comparing` and `page`
report it, `command` has the flags.
"""
