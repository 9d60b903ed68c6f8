"""Scoring: the same scores with the history read many times, or once."""
