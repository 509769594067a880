"""What a replica knows of the cluster.

view is the store's content as one value, feed keeps it current, condition, grouping and observe say what follows from it.
"""
