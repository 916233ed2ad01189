"""The GPU engine: scheduler, steps in CUDA graphs, and the fast forward they run."""
