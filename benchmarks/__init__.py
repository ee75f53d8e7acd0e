"""Measurements of the engine against plain PyTorch, each with its committed result."""
