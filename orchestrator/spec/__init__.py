"""What a run is asked to do: frozen specs, spaces and sampling, overrides, named sweeps, limits.

No torch, no ray. Read ``run.py`` first.
"""
