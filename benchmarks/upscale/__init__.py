"""Function-preserving enlargement of a trained Llama checkpoint to any Llama shape.

The large model says exactly what the small one says, within rounding, and a step of it costs what
a step of a model of that size costs: real acceptance at real sizes, without a download.
`python -m benchmarks.upscale --help` is the command, `enlarge` the function.
"""

from benchmarks.shapes import SHAPES, Shape, resolve_shape
from benchmarks.upscale.enlarge import enlarge

__all__ = ["SHAPES", "Shape", "enlarge", "resolve_shape"]
