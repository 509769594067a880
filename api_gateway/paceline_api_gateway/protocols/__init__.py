"""One folder for each wire protocol.

A folder holds bodies (schema*.py), what they become and what events become (translate_*.py, pure), errors.py and routes (effects).
All stand on serving.py; none uses another protocol's folder.
"""
