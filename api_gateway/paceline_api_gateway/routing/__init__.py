"""Which instance answers a request: chosen from the cluster state that the control plane streams to us."""
