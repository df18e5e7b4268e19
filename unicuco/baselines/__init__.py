"""Rivals of the search, measured on the same evaluator."""
