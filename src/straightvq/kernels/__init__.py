"""Accelerator kernels behind `straightvq.functional`. Triton is imported only when a search first runs on one."""
