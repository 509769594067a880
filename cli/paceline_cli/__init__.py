"""The hands: the `paceline` command. Talks HTTP to a gateway; `up` (a room of its own) supervises a whole cluster on this machine."""
