"""Puzzle: derive a faster language model from a pretrained one, for the hardware you have."""
