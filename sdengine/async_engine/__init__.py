"""The asyncio face: one thread owns the engine, coroutines submit, read and cancel."""

from sdengine.async_engine.engine import AsyncEngine, EngineStatus
from sdengine.async_engine.stream import RequestStream

__all__ = ["AsyncEngine", "EngineStatus", "RequestStream"]
