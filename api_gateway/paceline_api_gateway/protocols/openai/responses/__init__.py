"""OpenAI's Responses API over the cluster, and the store of the responses that clients come back to.

schema and items read what clients send, translate_request and translate_events turn it into canonical requests and back (all pure);
store keeps responses in a file, desk answers and keeps, routes speaks HTTP.
"""
