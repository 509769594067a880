"""Claude's Messages API, as its clients expect it: messages, counting tokens, models."""
