"""What runs on a worker; knows nothing of orchestrator.

``finetune.py`` is the front door: one function, no Ray. Rooms, top to bottom: ``worker``,
``export``, ``evaluate``, ``train``, ``data``, ``backbones``, ``storage``; all may import ``spec``,
``config`` and ``errors``.
"""
