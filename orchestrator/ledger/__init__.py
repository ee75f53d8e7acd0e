"""The record of a run: events, the state they add up to, its cost, lock, copies.

Knows specs and nothing above them. Read ``events.py`` first, then ``header.py`` and
``state.py``.
"""
