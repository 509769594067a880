"""The face of the cluster: HTTP protocols over the public gRPC API. Stateless: any number of gateways behind any balancer."""
