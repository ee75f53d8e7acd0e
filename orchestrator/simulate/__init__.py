"""Runs on a virtual clock: the product's own scheduler, dispatcher state, budget guard, finals and
ledger, without Ray and without waiting; what a training gives comes from a world. May import the
engine's decisions and the rooms below it. Read :mod:`orchestrator.simulate.run` first, then
:mod:`orchestrator.simulate.worlds`.
"""
