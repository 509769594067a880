"""What one runner computes: the forward of its layers over its KV caches, and, on the head, sampling and text.

Only the compute thread calls into MLX. Nothing here knows of other stages or of the network.
"""
