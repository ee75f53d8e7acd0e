"""From options to a run that may start: its spec, every check, plan, forecast, images and costs.

Starts no Ray and writes no ledger. May import tracking, compare, ray_cluster, ledger, spec and
trainables. Read ``options.py`` first, what is asked for; then ``validation.py``,
``plan.py``, and ``prepare.py``, what the engine gets.
"""
