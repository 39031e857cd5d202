"""Experiments: grids of runs as data, their results in one file, tables and plots of them."""
