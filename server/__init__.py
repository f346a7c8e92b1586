"""The web page and the HTTP API on a registry: the same functions that the command calls, for people and programs elsewhere."""
