"""Received opinions about architectures as predeclared experiments with verdicts.

``claim.py`` says what a claim is, ``experiments/`` holds one file a claim, ``design.py`` lays the
run out and prices it, ``results.py`` reads its ledger, ``effects.py`` judges, ``verdict.py`` tells.
May import ``launch`` and the rooms below it, and ``trainables``. Read ``claim.py`` first, then
``experiments/vit_needs_more_data.py``.
"""
