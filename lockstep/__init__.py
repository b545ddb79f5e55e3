"""Lockstep: candidate retrieval in which only equal model versions ever meet."""

import os

__version__ = "0.1.0"

# TensorFlow Recommenders needs Keras 2, and TensorFlow reads this once, at its import; this package is
# imported before any module of ours that imports TensorFlow, so this is its one place.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
