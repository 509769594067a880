"""Decides which node holds which layers. Pure: no store, no clock, no view of the cluster.

splitting divides layers over room; arranging orders nodes so that few layers move; planner chooses nodes and says what is missing; mesh
tells whether nodes are joined for JACCL. The caller knows what memory is free where.
"""
