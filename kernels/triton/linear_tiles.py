"""Tiles of `linear` in Triton, and the parts that K is cut into: tables, and how they are read.

`python -m benchmarks.gpu_suite --slice tiles` times every choice that may be worth it.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton

from sdengine.kernels.triton.launch import MIN_ROWS, nearest

MAX_TAIL = 32  # rows that a tail saves another pass over W for; with more the gated kernel spills


@dataclass(frozen=True, slots=True)
class Config:
    """Tile of a program (most rows, features, inputs of one step), warps and pipeline stages; for
    products that at least so many programs compute side by side. Rows count with their tail; the
    widest tile takes any tail."""

    max_rows: int
    min_programs: int
    features: int
    inputs: int
    num_warps: int
    num_stages: int


# 16-bit formats by architecture, the first that has rows and programs enough; float32 has no tensor
# cores here and is for exactness, not for speed. Those of 90 were chosen from measurements of
# bfloat16 on an H200 (docs/log.md, "A first GPU" and "A second"); a wide tile reads x less often, a
# narrow one keeps more multiprocessors at work, and so do stages few enough for two programs on
# each. The others were chosen by counting.
NARROW_CONFIGS = {
    80: (Config(64, 0, 64, 64, 4, 3),),
    90: (
        Config(16, 0, 64, 128, 4, 5),
        Config(32, 0, 64, 128, 4, 4),
        Config(64, 96, 128, 64, 4, 5),
        Config(64, 0, 64, 64, 4, 6),
        Config(96, 1000, 128, 64, 4, 4),
        Config(96, 150, 64, 128, 4, 3),
        Config(96, 0, 64, 128, 4, 4),
        Config(128, 112, 128, 64, 8, 4),
        Config(128, 150, 64, 64, 4, 4),
        Config(128, 100, 64, 128, 4, 4),
        Config(128, 0, 64, 64, 4, 4),
    ),
    100: (Config(64, 0, 64, 64, 4, 4),),
    120: (Config(64, 0, 64, 64, 4, 3),),
}
# The same for a gate, whose programs read two tiles of W; where there is none, it has no own.
GATED_CONFIGS = {
    90: (
        Config(16, 0, 64, 128, 4, 5),
        Config(32, 0, 64, 128, 4, 4),
        Config(64, 0, 64, 64, 4, 6),
        Config(96, 150, 64, 64, 4, 4),
        Config(96, 0, 64, 64, 4, 6),
        Config(128, 112, 128, 64, 8, 4),
        Config(128, 0, 64, 64, 4, 6),
    ),
}
F32_CONFIGS = (Config(16, 0, 64, 32, 4, 2),)
SHARED_BYTES = {80: 160 << 10, 90: 224 << 10, 100: 224 << 10, 120: 96 << 10}  # of a program


@dataclass(frozen=True, slots=True)
class Split:
    """Parts that K is cut into, for weights of at most so many features and at least so many
    inputs."""

    max_features: int
    min_inputs: int
    parts: int


# By architecture, the first that fits; a weight that none fits, or with a gate, is not cut.
SPLITS = {
    80: (Split(2048, 2048, 4), Split(6144, 4096, 2)),
    90: (Split(3072, 2048, 4), Split(4096, 4096, 4), Split(6144, 4096, 2)),
    100: (),  # the kernel of a part spills a word there
    120: (Split(2048, 2048, 4), Split(6144, 4096, 2)),
}
MAX_PART_ROWS = 144  # rows up to which a part has a program of its own
PART_STEP = 256  # a part is a multiple of this, and this of the inputs of every step


def num_parts(arch: int, num_features: int, num_inputs: int) -> int:
    """Parts that K is cut into: a matter of the weight's shape alone."""
    for split in nearest(SPLITS, arch):
        if num_features <= split.max_features and num_inputs >= split.min_inputs:
            return split.parts
    return 1


def part_inputs(num_inputs: int, parts: int) -> int:
    """Inputs of a part of K; the last may have fewer."""
    return triton.cdiv(triton.cdiv(num_inputs, PART_STEP), parts) * PART_STEP


def tiling(capacity: int, widest: int) -> tuple[int, int]:
    """Rows of a tile and of its tail, for a product of `capacity` rows."""
    if capacity > widest:
        rest = triton.next_power_of_2(max(MIN_ROWS, capacity - widest))
        return widest, rest if widest >= 64 and rest <= min(MAX_TAIL, widest // 2) else 0
    rows = max(MIN_ROWS, triton.next_power_of_2(capacity))
    half = rows // 2
    rest = triton.next_power_of_2(max(MIN_ROWS, capacity - half))
    return (half, rest) if half >= 64 and rest < half else (rows, 0)


def configs_of(arch: int, is_f32: bool, is_gated: bool) -> tuple[Config, ...]:
    """The table for a product."""
    if is_f32:
        return F32_CONFIGS
    configs = nearest(NARROW_CONFIGS, arch)
    return GATED_CONFIGS.get(arch, configs) if is_gated else configs


def config_of(configs: tuple[Config, ...], rows: int, num_features: int, parts: int) -> Config:
    """The config of a tile of so many rows, tail included."""
    rows = min(rows, configs[-1].max_rows)
    return next(
        config
        for config in configs
        if rows <= config.max_rows
        and triton.cdiv(num_features, config.features) * parts >= config.min_programs
    )


def num_stages(config: Config, rows: int, x_bytes: int, num_weights: int, arch: int) -> int:
    """As many pipeline stages as are wanted and fit, for tiles of x with so many rows in all and so
    many bytes an element."""
    stage = config.inputs * (2 * num_weights * config.features + x_bytes * rows)
    return max(2, min(config.num_stages, nearest(SHARED_BYTES, arch) // stage))
