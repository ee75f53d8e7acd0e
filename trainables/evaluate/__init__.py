"""What a trained model does: its predictions, the test evaluation, and what accuracy does not say.

Read ``model.py`` first: from a checkpoint to a model, the one way for the test evaluation, probes
and export; ``speed.py`` times models in turns. May import ``train`` and the rooms below it.
"""
