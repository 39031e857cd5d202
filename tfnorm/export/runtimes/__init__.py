"""What runs an export where neither tfnorm nor Keras can be imported, each in its own process.

`process.py` is the script. The modules beside it know one runtime each: BLOCKED are packages that
it has to do without, `load(export)` returns a function from inputs by name to outputs by name, as
NumPy arrays. They are imported by the script, not as modules of this package.
"""
