"""Whether a model's files are sound, and whether two models compute the same."""
