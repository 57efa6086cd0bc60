"""Loading, as engines do it, peaks at no more than 1.15 times the weights, measured in a process of
its own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdengine.model.config_file import parse_model_config
from sdengine.model.weight_map import weight_sources

# A 68M Llama's proportions: half of the weights in embedding and output projection.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "torch_dtype": "bfloat16",
}
LIMIT = 1.15

LOADER = """
import re, sys
from pathlib import Path
import torch
from sdengine.kernels.cpu_library import load_cpu
from sdengine.model.checkpoint import open_checkpoint
from sdengine.runner.weights import PackedLayout, load_weights

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024

torch.set_num_threads(1)
checkpoint = open_checkpoint(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
num_bytes = Path(sys.argv[1], "model.safetensors").stat().st_size // 2 * dtype.itemsize
layout = PackedLayout(dtype, load_cpu().ThreadPool(1))
torch.ones(1 << 12, dtype=torch.bfloat16).clone().float().sum()  # touch what torch loads lazily
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
weights = load_weights(checkpoint, dtype, 64, layout)
assert len(weights.layers) == 3 and weights.embed.shape == (32000, 1024)
print((status("VmHWM") - before) / num_bytes, num_bytes)
"""


def write_checkpoint(directory: Path) -> None:
    """Write the file piece by piece, so that the test itself stays small."""
    (directory / "config.json").write_text(json.dumps(CONFIG))
    header, end = {}, 0
    for sources in weight_sources(parse_model_config(CONFIG)).values():
        for name, shape in sources.items():
            begin, end = end, end + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        ones = b"\x80\x3f" * (1 << 20)
        while end:
            file.write(ones[:end])
            end -= min(end, len(ones))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "least"),
    [
        ("bfloat16", 0.70),  # a quarter of the weights, the embedding, stays in the mapped file
        ("float32", 0.95),  # converted from bfloat16
    ],
)
def test_peak_memory_while_loading(tmp_path: Path, dtype: str, least: float) -> None:
    write_checkpoint(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path), dtype],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    ratio, num_bytes = map(float, done.stdout.split())
    assert num_bytes > 2e8
    assert least < ratio <= LIMIT - (0.95 - least)
