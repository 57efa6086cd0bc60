"""A server's own loop around Engine.step(): requests join, finish and are aborted at any step."""

from sdengine import Engine, SamplingParams

engine = Engine("python-completion", max_num_seqs=4)
params = SamplingParams(max_tokens=48, temperature=0.8, seed=7)
engine.add_request("a", "class Node:", params)
engine.add_request("b", "def open_file(path):", params)

num_steps = 0
while engine.has_unfinished_requests():
    for output in engine.step():
        if output.finished:
            print(f"{output.request_id}: {output.outputs[0].text!r}")
    num_steps += 1
    if num_steps == 3:
        engine.add_request("late", "import sys\n", SamplingParams(max_tokens=48, ignore_eos=True))
    if num_steps == 5:
        partial = engine.abort_request("late")
        print(f"late: aborted after {len(partial.outputs[0].token_ids)} tokens")
