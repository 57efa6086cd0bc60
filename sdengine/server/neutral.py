"""Fields that OpenAI's endpoints have and this server does not, and what may stand in them."""

from __future__ import annotations

from typing import Any

__all__ = [
    "NEUTRAL",
    "NEUTRAL_IN_CHAT",
    "NEUTRAL_IN_COMPLETIONS",
    "NEUTRAL_IN_MESSAGES",
    "NEUTRAL_IN_STREAM_OPTIONS",
    "Neutral",
]

Neutral = dict[str, tuple[Any, ...]]
"""Field -> values that ask for nothing; None always does."""

NEUTRAL: Neutral = {
    "response_format": ({"type": "text"},),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
}
NEUTRAL_IN_COMPLETIONS: Neutral = {**NEUTRAL, "echo": (False,), "suffix": (), "best_of": (1,)}
NEUTRAL_IN_CHAT: Neutral = {
    **NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "safety_identifier": (),
}
# What answers hold besides their text: clients send whole answers back as messages.
NEUTRAL_IN_MESSAGES: Neutral = {
    "refusal": ("",),
    "tool_calls": ([],),
    "function_call": ({},),
    "audio": ({},),
    "annotations": ([],),
    "parsed": (),  # what the official client adds
}
NEUTRAL_IN_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,)}
