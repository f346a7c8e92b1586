"""The streaming merge: plan, deltas, blocks, checkpoint, metadata."""
