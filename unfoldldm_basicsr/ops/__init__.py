"""Operators, and statistics of whole images."""
