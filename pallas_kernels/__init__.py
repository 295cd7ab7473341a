"""Fused attention kernels for vision, on TPU, GPU and CPU; imports jax only."""
