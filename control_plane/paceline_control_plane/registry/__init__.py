"""Nodes of the cluster as this replica holds them: who may join, what is stored of them, what they are told."""
