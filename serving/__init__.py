"""Bundles in production: NVIDIA Triton, and C++ programs."""
