"""From a spec to a run that may start: validation, plan, forecast, measured costs, images.

Starts no Ray and writes no ledger. Read ``validation.py`` first.
"""
