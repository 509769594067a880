"""The resident process of a node: joins the control plane, gets models, and starts, watches and ends runners. Never imports mlx.

What to do next is decided in plan (pure); everything else is effects: session (the control plane), supervisor (runners), models (disk).
"""
