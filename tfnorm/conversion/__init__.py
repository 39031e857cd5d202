"""Swapping the normalizers of a model for others."""

from tfnorm.conversion.convert import convert
from tfnorm.conversion.report import Report, Row

__all__ = ["Report", "Row", "convert"]
