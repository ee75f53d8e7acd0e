"""The Ray cluster: attach to it or start one, what it can ever hold, its nodes' versions.

Read ``attach.py`` first.
"""
