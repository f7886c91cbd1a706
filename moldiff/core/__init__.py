"""Tensors and geometry; imports torch and nothing else."""
