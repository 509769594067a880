"""The control plane's public services: protobuf in and out; what they mean is decided in registry, topology and placement."""
