"""Which replica leads: one leased key in the store, held by whoever made it."""
