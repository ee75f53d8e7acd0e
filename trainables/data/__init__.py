"""Images: any source -> the image store that all workers of a node map -> batches on the device.

``sources.py`` finds the source (and knows the named ones); ``folders.py`` (with ``listing.py`` and
``split_names.py``), ``parquet.py`` and ``csv_table.py`` (with ``columns.py`` and ``labels.py``) and
``cifar.py`` read it; ``pictures.py`` decodes (with ``value_ranges.py`` and ``metadata.py``),
``build.py`` builds the store (``prepare``) and shares it between nodes, ``writing.py`` writes its
files, ``store.py`` maps and splits it (``groups.py``: by what belongs together), ``encoded.py``
decodes pictures that are kept as they are, ``duplicates.py`` counts what is there twice and
``balance.py`` says how large the classes are, ``batches.py`` feeds a device. May import
``storage``, ``config`` and ``errors``. Read ``sources.py`` first, then ``build.py``.
"""
