"""Files in object storage and on this node, and every bounded wait of the project.

``object_storage.py`` puts and gets files, ``trial_files.py`` keeps a trial's checkpoints in both
places, ``waiting.py`` retries, polls and bounds calls. May import ``config`` and ``errors``; no
torch, no ray. Read ``object_storage.py`` first.
"""
