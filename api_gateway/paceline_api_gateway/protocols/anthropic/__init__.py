"""Claude's messages, as its clients expect them."""
