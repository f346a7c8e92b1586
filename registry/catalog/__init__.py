"""What is registered: base models, domains, adapters, builds, publications, and their events."""
