"""The comparison as one HTML file that works offline.

Read ``page.py`` first.
"""
