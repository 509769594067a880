"""Ollama's API, as its clients expect it, under /api and /ollama/api."""
