"""The model: training, exact evaluation and export of both towers.

Importing `lockstep` here, before any module of this package imports TensorFlow, selects the Keras that TensorFlow
Recommenders needs.
"""

import lockstep  # noqa: F401
