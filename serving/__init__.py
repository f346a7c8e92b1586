"""Serving from the registry: resolving references, the vLLM plugin."""
