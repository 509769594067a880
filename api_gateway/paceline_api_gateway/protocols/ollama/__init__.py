"""Ollama's API, as its clients expect it."""
