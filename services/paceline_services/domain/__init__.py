"""Domain values: what a cluster is made of, as frozen values with parsed types.

Each mirrors one protobuf message field by field (paceline_services.codec converts; a contract test holds the two together).
The meaning of every field stands once, in the .proto file.
"""
