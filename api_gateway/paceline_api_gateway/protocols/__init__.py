"""One folder for each wire protocol: openai now; anthropic and ollama beside it later.

A folder holds schema.py (bodies), translate_request.py and translate_events.py (pure), and routes.py (effects). It may use generation
and routing, never another protocol's folder.
"""
