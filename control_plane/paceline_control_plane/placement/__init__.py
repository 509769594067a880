"""Decides which node holds which layers. Pure: no store, no clock, no view of the cluster.

splitting divides layers over room; planner chooses nodes and says what is missing. The caller knows what memory is free where.
"""
