"""What runs inside the jail, and nothing else: the jail sees this folder but no other part of the project.

The standard library and ``landlockpy`` are all that these modules may import.
"""
