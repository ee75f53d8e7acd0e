"""From ledgers to what they say: statistics, the terminal's table, JSON, and ``report/``, the page.

Also which trial won (``winners.py``). Imports ``ledger``, ``spec`` and ``wording``. Read
``comparison.py`` first: what a comparison holds; then ``runs.py``: a run as arrays.
"""
