from sdengine import errors as errors
from sdengine import kernels as kernels
from sdengine.async_engine import AsyncEngine as AsyncEngine
from sdengine.core.config import EngineConfig as EngineConfig
from sdengine.core.config import SpeculationConfig as SpeculationConfig
from sdengine.core.outputs import CompletionOutput as CompletionOutput
from sdengine.core.outputs import Logprob as Logprob
from sdengine.core.outputs import RequestMetrics as RequestMetrics
from sdengine.core.outputs import RequestOutput as RequestOutput
from sdengine.core.outputs import SpeculationStats as SpeculationStats
from sdengine.core.outputs import StepTree as StepTree
from sdengine.core.sampling_params import SamplingParams as SamplingParams
from sdengine.engine import Engine as Engine
from sdengine.llm import LLM as LLM
from sdengine.llm import StreamDelta as StreamDelta

__version__: str
