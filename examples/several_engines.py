"""Several engines in one process: each has its cache and threads, all read one copy of the weights,
and none disturbs another."""

from sdengine import Engine, SamplingParams, SpeculationConfig

params = SamplingParams(max_tokens=48, temperature=0.8, seed=11)
chain = SpeculationConfig(method="chain", max_depth=4)
engines = {
    "plain": Engine("python-completion", speculation=None, num_threads=1),
    "dyspec": Engine("python-completion", num_threads=1),
    "chain": Engine("python-completion", speculation=chain, num_threads=1),
}
for engine in engines.values():
    engine.add_request("same", "class Graph:\n    def __init__(self):", params)

texts: dict[str, str] = {}
while len(texts) < len(engines):
    for name, engine in engines.items():  # one step each, in turn
        for output in engine.step() if engine.has_unfinished_requests() else ():
            if output.finished:
                texts[name] = output.outputs[0].text

for name, text in texts.items():
    print(f"{name:8} {'same text' if text == texts['plain'] else 'DIFFERENT TEXT'}")
print(texts["plain"])
