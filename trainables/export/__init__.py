"""A checkpoint as a folder that timm loads without this project.

Read ``folder.py`` first.
"""
