"""Images: any source -> the pixel store that all workers of a node map -> batches on the device.

``sources.py`` finds the source (and knows the named ones), ``pictures.py``, ``parquet.py`` and
``cifar.py`` read it, ``build.py`` builds the store (``prepare``), ``store.py`` maps and splits it,
``duplicates.py`` counts what is there twice, ``batches.py`` feeds a device. May import ``storage``,
``config`` and ``errors``. Read ``sources.py`` first, then ``build.py``.
"""
