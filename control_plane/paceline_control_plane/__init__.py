"""Paceline's control plane: nodes and instances over one store, decided by an elected leader, read from any replica.

store keeps, election chooses who decides, topology sees, placement plans, controllers decide, registry talks to agents, api to clients.
"""
