"""The campaign against losing, spoiling and hiding anything: `python -m tests.campaign` from the root of the repository.

`trials.py` says what a part and a trial are and `running.py` runs them. `bench.py` is what trials share, `process.py` with
`server.py` and `shim.cpp` runs commands with faults, and `invariants.py` judges them. Every other module is a part.
"""
