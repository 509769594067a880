"""Other OpenAI-compatible servers beside the cluster, behind the same address.

settings names them, choice decides (pure), health watches them in the background, forward passes requests through, gate stands before the
application and does all of it.
"""
