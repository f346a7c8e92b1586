"""Webhooks: targets, the outbox of events that are still to be delivered to them, and delivering them."""
