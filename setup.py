"""Packaging of tfnorm: what it supports. Known-good versions are in constraints.txt."""

import pathlib
import runpy

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

setup(
    name="tfnorm",
    version=runpy.run_path(str(HERE / "tfnorm" / "version.py"))["__version__"],
    description="Normalization layers for TensorFlow that train at any batch size, fold and serve",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The tfnorm Authors",
    license="Apache-2.0",
    url="https://github.com/tfnorm/tfnorm",
    project_urls={
        "Documentation": "https://tfnorm.github.io/tfnorm",
        "Source": "https://github.com/tfnorm/tfnorm",
        "Issues": "https://github.com/tfnorm/tfnorm/issues",
        "Changelog": "https://github.com/tfnorm/tfnorm/blob/main/CHANGELOG.md",
    },
    license_files=["LICENSE"],
    keywords=[
        "batch normalization",
        "batch renormalization",
        "deep learning",
        "keras",
        "normalization",
        "small batches",
        "tensorflow",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["tfnorm", "tfnorm.*"]),
    package_data={"tfnorm": ["py.typed"]},
    # Not "build": on file systems that ignore case, that is the file BUILD.
    options={"build": {"build_base": "dist/build"}},
    install_requires=[
        "absl-py>=2.0",
        "importlib-resources>=6.0",  # tensorflow-datasets needs it and does not say so
        "keras>=3.12,<3.16",
        "numpy>=2.0",
        "scikit-learn>=1.5",  # ships the digits of the default data set
        "tensorflow>=2.20,<2.22",
        "tensorflow-datasets>=4.9.8",
    ],
    extras_require={
        "report": ["matplotlib>=3.9"],
        "detection": ["pycocotools>=2.0.8"],
        "test": [
            "coverage>=7.10",
            "hypothesis>=6.100",
            "matplotlib>=3.9",
            "mypy>=1.16",
            "pycocotools>=2.0.8",
            "pytest>=8.2",
            "pytest-cov>=6.0",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "setuptools>=70.1",
        ],
        "docs": ["mkdocs-jupyter>=0.26", "mkdocs-material>=9.7", "mkdocstrings-python>=2.0"],
        # What TensorFlow's resolver needs to find a Cloud TPU by its name. On a TPU VM itself,
        # tensorflow-tpu takes the place of tensorflow.
        "tpu": ["google-api-python-client", "oauth2client"],
        "hub": ["keras-hub>=0.25"],
        # What benchmarks.accelerator runs programs by; on a GPU jax[cuda12], on a TPU jax[tpu].
        "accelerator": ["jax>=0.8"],
        "litert": ["ai-edge-litert>=2.0"],
        "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "tf2onnx>=1.17"],
    },
    entry_points={
        "console_scripts": [
            "tfnorm-train = tfnorm.train:main",
            "tfnorm-compare = tfnorm.compare:main",
            "tfnorm-export = tfnorm.export.__main__:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
