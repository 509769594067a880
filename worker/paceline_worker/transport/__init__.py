"""How frames get from one stage to the next: the StageLink seam and its implementations.

grpc_link is the real one; loopback is its in-process twin; group_link sends headers over the former and activations through a group.
group joins processes that compute together over MLX (ring, JACCL, NCCL).
"""
