"""From options to a run that may start: its spec, every check, plan, forecast, images and costs.

Starts no Ray and writes no ledger. May import tracking, compare, ray_cluster, ledger, spec and
trainables. Read ``prepare.py`` first: what the engine is given, and how it comes about.
"""
