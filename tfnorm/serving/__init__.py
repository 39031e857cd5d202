"""What stands around a network in its export: from images as they are sent to what clients want."""

from tfnorm.serving.canvas import Canvas
from tfnorm.serving.class_map import ClassMap
from tfnorm.serving.detections import DetectionPostprocessing
from tfnorm.serving.interface import Postprocessor, Preprocessor
from tfnorm.serving.postprocessing import Postprocessing
from tfnorm.serving.preprocessing import Preprocessing
from tfnorm.serving.region_detections import RegionDetections

__all__ = [
    "Canvas",
    "ClassMap",
    "DetectionPostprocessing",
    "Postprocessing",
    "Postprocessor",
    "Preprocessing",
    "Preprocessor",
    "RegionDetections",
]
