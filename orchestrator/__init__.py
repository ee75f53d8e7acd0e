"""Decides what trains next and says what it meant."""
