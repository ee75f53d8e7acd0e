"""What a trained model does: its predictions, the test evaluation, and what accuracy does not say.

Read ``model.py`` first: from a checkpoint to a model, the one way for the test evaluation, probes
and export; ``speed.py`` times models in turns. Of a backbone that is not trained, ``frozen.py`` has
the features, ``linear.py`` what they tell, and ``screening.py`` one candidate's screen.
May import ``train`` and the rooms below it.
"""
