"""The process that holds one shard: loads it, serves the data plane, and on the head the public GenerationService.

It outlives its epochs: told another one, it keeps the layers that it holds and, as a head, its requests. It is told what to do on
standard input and tells its agent how it is on standard output. It can be killed at any time: nothing else
dies with it, and it dies with its agent (end of file on standard input).
"""
