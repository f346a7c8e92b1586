"""The trainer `laser`."""
