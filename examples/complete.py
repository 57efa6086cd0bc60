"""Completes two prompts at once with the bundled pair and shows how speculation did."""

from sdengine import LLM, SamplingParams

llm = LLM("python-completion")
prompts = ["class Stack:\n    def __init__(self):", "import os\n\n\ndef read_lines(path):"]
params = SamplingParams(max_tokens=64, temperature=0.6, top_p=0.95, seed=1)

for prompt, output in zip(prompts, llm.generate(prompts, params)):
    print(prompt + output.outputs[0].text)
    stats = output.metrics.speculation
    print(f"--- {stats.mean_acceptance_length:.2f} tokens per target forward\n")
