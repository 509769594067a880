"""Tensor parallelism: a rank holds a part of every layer of its stage, and the ranks' results are summed."""
