"""Decides what trains next and says what it meant.

Rooms, top to bottom; each imports only rooms below it: ``cli``, ``ops``, ``engine``, ``claims``,
``launch``, ``tracking``, ``compare``, ``ray_cluster``, ``ledger``, ``spec``. Start with
``cli/main.py``.
"""
