"""What Ray Train runs on every worker of a slot: carry the dispatcher's orders out.

Read ``dispatcher_client.py`` first: the orders and answers that slots, trials and the dispatcher
exchange; then ``entry.py`` and ``serve.py``. Imports all other rooms of trainables; only
``orchestrator.engine`` imports it.
"""
