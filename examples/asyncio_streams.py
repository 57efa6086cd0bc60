"""asyncio: several streams at once, one of them cancelled, and a drain at the end."""

import asyncio

from sdengine import AsyncEngine, Engine, SamplingParams

PROMPTS = ("class Queue:", "def read_lines(path):", "import os\n\n\ndef main():")


async def complete(engine: AsyncEngine, prompt: str, seed: int) -> str:
    params = SamplingParams(max_tokens=32, temperature=0.8, seed=seed)
    async for output in engine.generate(prompt, params):
        text = output.outputs[0].text  # cumulative: a slow reader misses nothing
    return prompt + text


async def peek(engine: AsyncEngine, prompt: str) -> str:
    endless = SamplingParams(max_tokens=900, ignore_eos=True)
    async with await engine.submit(prompt, endless) as stream:
        async for output in stream:
            if len(output.outputs[0].token_ids) >= 5:
                return output.outputs[0].text  # leaving the block cancels the request


async def main() -> None:
    async with AsyncEngine(Engine("python-completion", max_num_seqs=4)) as engine:
        tasks = [complete(engine, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
        *texts, beginning = await asyncio.gather(*tasks, peek(engine, "x = [\n"))
        for text in texts:
            print(text, end="\n---\n")
        print(f"cancelled after {beginning!r}")


asyncio.run(main())
