"""Finding coefficients: the mixture, objectives, search."""
