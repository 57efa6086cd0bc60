"""The same seed gives the same text, whatever speculates: checked for every kind of drafting."""

from __future__ import annotations

from sdengine import LLM, SamplingParams, SpeculationConfig

prompt = "class Queue:\n    def __init__(self, maxsize=0):"
params = SamplingParams(max_tokens=64, temperature=0.8, seed=3)


def complete(speculation: SpeculationConfig | None) -> list[int]:
    llm = LLM("python-completion", speculation=speculation, max_num_seqs=1)
    return list(llm.generate(prompt, params)[0].outputs[0].token_ids)


plain = complete(None)
for method in ("dyspec", "chain", "kary", "sampled", "ngram"):
    same = complete(SpeculationConfig(method=method)) == plain
    print(f"{method:8} {'same tokens as plain decoding' if same else 'DIFFERENT TOKENS'}")
