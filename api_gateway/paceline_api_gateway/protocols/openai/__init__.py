"""OpenAI's chat completions, completions and models, as its clients expect them, with a few of vLLM's extensions."""
