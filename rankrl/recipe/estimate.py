"""What a plan needs: GPUs, memory, tokens, bytes and hours, with the formula of each number.

No torch. The limits of the formulas are in docs/cost.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rankrl.recipe.architecture import widths
from rankrl.recipe.cost import DEVICES, cost, gathers, kv_bytes_per_token, kv_shards, memory, train_bytes
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.memory import CPU_CONTROLLER_BYTES, LOGIT_BYTES, Parts, kv_tokens, memory_bytes, offloaded_bytes
from rankrl.recipe.plan import Run, adapter_params, micro_batch, neediest
from rankrl.recipe.rank_table import WEIGHT_BYTES
from rankrl.recipe.scale import Scale

GATHER_BYTES_S = 350e9
"""Bus bandwidth of NCCL's all-gather on H100s, in a node or between nodes with 8 x 400 Gb/s.
Assumed, not measured here."""
MOST_PARALLEL = 8  # most runs at once that a sweep chooses by itself


@dataclass(frozen=True)
class Line:
    """One line of the estimates, as text."""

    what: str
    value: str
    mark: str
    """exact; fitted to measurements; or an estimate that no measurement has confirmed."""
    formula: str


def size(count_bytes: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count_bytes) >= unit:
            return f"{count_bytes / unit:.3g} {name}"
    return f"{count_bytes:.0f} B"


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f} M" if tokens >= 1e8 else f"{tokens / 1e6:.2g} M"


def duration(seconds: float) -> str:
    hours = seconds / 3600
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.3g} h" if hours >= 1 else f"{seconds / 60:.2g} min"


def span(values: Iterable[float], show: Callable[[float], str] = size) -> str:
    """The smallest and largest value as text, or a single one if they read the same."""
    least, *_, most = sorted([*values] * 2)
    return show(least) if show(least) == show(most) else f"{show(least)} to {show(most)}"


def fitting_runs(runs: Sequence[Run], busy: int, room_bytes: float) -> int:
    """Number of runs at once, at most `busy`, that fit into `room_bytes` of a worker.

    Their adapters and optimizers are counted.
    """
    most, largest_bytes = neediest(runs), max(train_bytes(run) for run in runs)
    return max(1, min(MOST_PARALLEL, busy, int(room_bytes / memory(most.served, largest_bytes, most.critic_ranks).run)))


def gpu_room_bytes(scale: Scale) -> float:
    """Bytes of a GPU that adapters and their optimizers may take."""
    return DEVICES[scale.placement.device].memory_bytes / 5


def likely_parallel_runs(runs: Sequence[Run]) -> int:
    """Number of runs at once that a sweep would choose by itself on the scale's device."""
    scale = runs[0].scale
    return (
        MOST_PARALLEL if scale.placement.device == "cpu" else fitting_runs(runs, MOST_PARALLEL, gpu_room_bytes(scale))
    )


def sweep_hours(runs: Sequence[Run], parallel_runs: int) -> str:
    """One line of text: hours of the whole sweep, packed and one by one."""
    packed = min(parallel_runs, len(runs))
    kinds = {(run.arm, run.batch_size): run for run in runs}  # the rank hardly matters
    costs = {kind: cost(run, packed) for kind, run in kinds.items()}
    each = [costs[run.arm, run.batch_size] for run in runs]
    place = neediest(runs).served.placement
    start_s = DEVICES[place.device].start_s
    together_h = (start_s + sum(c.packed_s for c in each)) / 3600
    alone_h = sum(start_s + c.run_s for c in each) / 3600
    return (
        f"estimate on {place.gpus} x {place.device}: {together_h:,.2f} h, {packed} runs at once; "
        f"{alone_h:,.2f} h one by one (docs/cost.md)"
    )


def estimates(runs: Sequence[Run], parallel_runs: int) -> list[Line]:
    """The estimates of a plan with `parallel_runs` runs at once.

    Raises ValueError as `widths` and `deepspeed_config` do.
    """
    kinds = list({(run.arm, run.rank, run.batch_size): run for run in runs}.values())
    packed = min(parallel_runs, len(runs))
    return [_gpus(neediest(kinds)), *_memory(kinds, packed), _tokens(kinds), _adapter(kinds), _time(kinds, packed)]


def _mark(scale: Scale) -> str:
    """The mark of numbers that depend on the device.

    The CPU's constants are fitted to measurements of an embedded model; those of GPUs come from
    data sheets.
    """
    embedded = scale.model.path in ("embedded:nano", "embedded:nano-hard")  # of one size
    return "fitted" if scale.placement.device == "cpu" and embedded else "estimate"


def _gpus(run: Run) -> Line:
    scale, place = run.served, run.served.placement
    workers = f"{place.nodes} x ({place.policy_per_node} policy + {place.critic_per_node} value)"
    formula = f"{workers} + {place.engines} x {place.tensor_parallel} engine"
    if place.colocated:
        formula = f"{place.policy_workers} policy, with {'value and ' * run.critic}engines on the same"
    kind = "processes" if place.device == "cpu" else "GPUs"
    nodes = "1 node" if scale.nodes == 1 else f"{scale.nodes} nodes"
    return Line(f"{kind} of a task", f"{place.gpus} on {nodes}", "exact", formula)


def _memory(kinds: list[Run], packed: int) -> list[Line]:
    run = max(kinds, key=lambda run: (run.critics, micro_batch(run), train_bytes(run)))
    scale, rank = run.served, max(run.rank for run in kinds)
    found, device = memory_bytes(run, rank, packed), scale.placement.device
    limit = "" if device == "cpu" else f" of {size(DEVICES[device].memory_bytes)}"
    lines = [
        Line(f"memory, {name}", size(total) + limit, _mark(scale), formula)
        for name, total, formula in _sums(scale, found)
    ]
    if "KV cache" in found["engine"]:
        lines.append(_kv_cache(scale, found["engine"]["KV cache"]))
    if deepspeed_config(scale)["zero_optimization"]["stage"] == 3:
        lines.append(_gathers(run))
    if host := offloaded_bytes(scale):
        lines.append(Line("memory, host of workers", size(host), "estimate", f"bases / {scale.placement.nodes} nodes"))
    return lines


def _gathers(run: Run) -> Line:
    """How often ZeRO-3 gathers the base."""
    scale, count = run.served, gathers(run)
    moved = count * scale.model.base_params * scale.model.bytes_per_param
    value = f"{count:.3g} a policy worker, {size(moved)}, {duration(moved / GATHER_BYTES_S)}"
    formula = "micro-batches (answers of half the length) x passes; partly behind the arithmetic, not in the wall time"
    return Line("gathers of a step", value, "estimate", formula)


def _sums(scale: Scale, found: dict[str, Parts]) -> list[tuple[str, float, str]]:
    """(name, bytes, the sum as text) of each process.

    Processes that share a GPU are summed.
    """
    if scale.placement.colocated:
        found = {"all on one GPU": {name: sum(parts.values()) for name, parts in found.items()}}
    elif scale.placement.device == "cpu":
        found = {**found, "controller": {"process": CPU_CONTROLLER_BYTES}}
    return [
        (name, sum(parts.values()), " + ".join(f"{part} {size(value)}" for part, value in parts.items()))
        for name, parts in found.items()
    ]


def _kv_cache(scale: Scale, room_bytes: float) -> Line:
    tokens = max(0, kv_tokens(scale, room_bytes))
    length = scale.lengths.prompt_tokens + scale.lengths.response_tokens
    a_token = kv_bytes_per_token(scale) // kv_shards(scale)
    formula = f"KV cache / {a_token:,} bytes a token; sequences of half of {length:,} tokens"
    value = f"{tokens:,} tokens, {2 * tokens // length:,} sequences"
    return Line("KV cache, engine", value, _mark(scale), formula)


def _tokens(kinds: list[Run]) -> Line:
    lengths = kinds[0].scale.lengths
    length = lengths.prompt_tokens + lengths.response_tokens
    samples = [run.recipe.steps * run.rollout_samples for run in kinds]
    value = f"{span((n * length / 2 for n in samples), millions)}, at most {millions(max(samples) * length)}"
    longest = f"({lengths.prompt_tokens:,} + {lengths.response_tokens:,})"
    each = " or ".join(map(str, sorted({run.recipe.samples_per_prompt for run in kinds})))
    formula = f"steps x prompts x {each} samples x {longest}, expected: half"
    return Line("tokens of a run", value, "estimate", formula)


def _adapter(kinds: list[Run]) -> Line:
    scale, sent = kinds[0].scale, [run.trainable_params for run in kinds]
    saved, wide = [run.trainable_params + run.frozen_params for run in kinds], scale.model.bytes_per_param
    value = f"{span(4 * p for p in saved)} saved, {span(wide * p for p in sent)} a sync"
    formula = f"{adapter_params(scale, 1):,} x rank x 4 bytes (fp32); x {wide} ({scale.model.dtype})"
    if any(run.frozen_params for run in kinds):
        formula += "; with trained=b, syncs after the first send B alone"
    return Line("adapter of a run", value, "exact", formula)


def _time(kinds: list[Run], packed: int) -> Line:
    costs = [cost(run, packed) for run in kinds]
    value = span((c.run_s for c in costs), duration)
    if packed > 1:
        value += f" alone, {span((c.packed_s for c in costs), duration)} as one of {packed}"
    formula = "steps x (rollout + experience + update + sync + overhead) + evaluations"
    return Line("wall time of a run", value, _mark(kinds[0].scale), formula)


def legend(run: Run) -> str:
    """Text that explains the parts of the memory estimates."""
    model = run.scale.model
    each = "(2 L + 150) H" if model.gradient_checkpointing else "92 (L + 1) H"
    known = widths(run.scale)
    return (
        "weights: base / workers under ZeRO-3; gathered: its live parameters; "
        f"adapters of workers: runs at once x {_bytes_of_adapters(run)};\n"
        f"activations in bf16: tokens of a micro batch x {each}; {LOGIT_BYTES} bytes for each of up to 2^26 logits; "
        f"H {known.hidden:,}, L {model.layers} (docs/cost.md)"
    )


def _bytes_of_adapters(run: Run) -> str:
    """The bytes of an adapter in training as text: a formula of its parameters."""
    trained = (1 + run.recipe.optimizer.moments) * WEIGHT_BYTES
    if not run.frozen_params:
        return f"{2 * WEIGHT_BYTES + trained} bytes x parameters"
    return f"({2 * WEIGHT_BYTES} bytes x parameters + {trained} x those of B)"


def table(lines: list[Line]) -> str:
    """The lines as text in aligned columns."""
    rows = [(line.what, line.value, line.mark, line.formula) for line in lines]
    widest = [max(len(row[i]) for row in rows) for i in range(3)] + [0]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widest, strict=True)) for row in rows)
