"""Balanced protocols, one state table a file."""
