"""Run-time compilation: the functors of plugins, compiled from their headers on first use, for the CPU and for CUDA devices."""
