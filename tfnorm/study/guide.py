"""The end of the page of results: which norm for which task."""

TEXT = """## Which norm should I use?
"""
