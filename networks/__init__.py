"""Neural networks that training and serving share: they know tasks, and no registry."""
