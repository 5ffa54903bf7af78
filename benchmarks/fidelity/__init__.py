"""`python -m benchmarks fidelity`: dmlcore beside the equations of the publications it implements, row by row.

Each publication has a module with transcriptions of its equations, written anew from the papers, and the rows that compare
them. `rows.py` says what a row is, `page.py` writes docs/reports/fidelity.md.
"""
