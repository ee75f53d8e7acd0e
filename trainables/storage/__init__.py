"""Files in object storage and on this node, and waiting with bounds. No torch, no ray.

Read ``object_storage.py`` first.
"""
