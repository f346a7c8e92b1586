"""A registry as one file: what it should hold (`apply`), what that would change, and the file that says what it holds (`export`)."""
