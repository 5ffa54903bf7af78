"""`python -m benchmarks gpu --first`: the first minutes on a GPU that no kernel of ours has run on yet.

`cases.py` lists what is done, `runner.py` does it case by case in processes of their own, `parts.py` is what those processes
run, `page.py` is the report.
"""
