"""Trifurcated inference: one request answered by three roles side by side: validator (-1), main (0) and speculative (+1).

The pattern and its signs are those of the project's founding documents. schema is the body, translate makes the roles' requests and writes
what came of them (pure), routes speaks HTTP.
"""
