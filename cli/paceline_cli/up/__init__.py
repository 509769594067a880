"""`paceline up`: a whole cluster on this machine as supervised child processes.

plan decides what to start and with which words (pure); ports finds free ones; process starts, watches and ends children; cluster
puts them in order; placing gets the wanted model ACTIVE.
"""
