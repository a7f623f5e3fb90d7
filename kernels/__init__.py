"""Triton kernels, one file per op; installed as ``fastsmc.kernels``. ``engine.py`` is the list of ops."""
