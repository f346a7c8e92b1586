"""Builds: planning, freshness, execution, workers."""
