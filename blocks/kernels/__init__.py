"""Kernels of the blocks: per operation a torch reference, a Triton kernel, and who is chosen.

Every operation is a package of three files: `reference.py` is the ground truth for values and
gradients, `triton.py` the kernel, and the package itself offers the operation under its own name
and a `why` that takes the same tensors and says in one sentence which of the two runs.

>>> import torch
>>> from puzzle.blocks.kernels.rmsnorm import rmsnorm, why
>>> x, weight = torch.tensor([[3.0, 4.0]]), torch.ones(2)
>>> rmsnorm(x, weight, eps=0.0)
tensor([[0.8485, 1.1314]])
>>> why(x, weight)
'rmsnorm runs the torch reference: its tensors are on cpu, and Triton kernels need CUDA'
"""
