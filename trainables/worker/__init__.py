"""What Ray Train runs on every worker of a slot: serve assignments, talk to the dispatcher.

Read ``entry.py`` first, then ``serve.py``.
"""
