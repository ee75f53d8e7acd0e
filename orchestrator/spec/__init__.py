"""What a run is asked to do: frozen specs, spaces and sampling, named sweeps, what follows them by
default, overrides, limits.

No torch, no ray. Read ``run.py`` first.
"""
