"""The cluster over HTTP: state, placing and removing, health and metrics."""
