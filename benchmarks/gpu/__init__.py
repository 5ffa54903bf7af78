"""`python -m benchmarks gpu`: build check, correctness and every table of figures on a CUDA device, within some minutes.

`devices.py` is all that touches a device or a clock, so that the tests run the tables on the CPU with a stand-in.
"""
