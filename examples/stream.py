"""Prints text as it is committed: several tokens at a time when the draft guesses well."""

from sdengine import LLM, SamplingParams

llm = LLM("python-completion")
params = SamplingParams(max_tokens=96, temperature=0.0, stop="\n\n\n")

for delta in llm.stream("def main(argv=None):\n    parser = ", params):
    print(delta.text, end="", flush=True)
    if delta.output is not None:
        print(f"\n--- finished: {delta.output.outputs[0].finish_reason}")
