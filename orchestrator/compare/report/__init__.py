"""The comparison as one HTML file that works offline, and its figures as SVG files for MLflow.

Python draws figures and prepares what the templates are given; what the page says is in
``templates/``, one file a section. Imports the rest of ``compare/`` and what that may import. Read
``page.py`` first; ``methods.py`` has the paragraph for a paper.
"""
