"""Triton kernels, one file per op; installed as ``fastsmc.kernels``. The first ones come with the GPU engine."""
