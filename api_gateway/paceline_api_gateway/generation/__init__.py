"""Opens generations on heads, whatever protocol asked for them."""
