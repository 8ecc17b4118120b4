"""The average of a run's last adapters, on the policy workers that hold them."""

from __future__ import annotations

from typing import Any

import torch

from rankrl.adapter.average import Pair, average
from rankrl.adapter.host import AdapterHost, doubled, lora_config
from rankrl.ppo.serving import Payload, pack, peft_names
from rankrl.ppo.workers import RunState


class Averaging:
    """A mixin of the policy worker: snapshots of a run's updates, and what becomes of them.

    A snapshot is the factors of delta W on the CPU: module -> (A, B), at the scale of the adapter.
    Where a frozen second adapter subtracts the start, they have twice the rank, as engines get
    them, and so does the average.
    """

    host: AdapterHost
    runs: dict[str, RunState]
    strategy: Any

    def keep_snapshot(self, run: RunState, step: int) -> None:
        """Keeps the adapter as it is after PPO step `step` (from 1), on worker 0."""
        if not self.strategy.is_rank_0():
            return
        update = self.host.update(run.spec.name, run.spec.table)
        kept = {m: tuple(factor.detach().cpu().clone() for factor in pair) for m, pair in update.items()}
        run.extra.setdefault("snapshots", {})[step] = kept

    def average_payload(self, dtype: str) -> Payload | None:
        """The average of the active run in the form that engines load; None beside worker 0."""
        run = self._active()
        if not self.strategy.is_rank_0():
            return None
        scales = {row.module: self.host.layer(row.module).scaling[run.spec.name] for row in run.spec.table}
        return pack(self._average(run), scales, dtype)

    def average_files(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The average of the active run as PEFT saves it; None beside worker 0.

        That is (adapter_config, tensors).
        """
        run = self._active()
        if not self.strategy.is_rank_0():
            return None
        found, table = self._average(run), run.spec.table
        twice = any(len(found[row.module][0]) != row.rank for row in table)
        config = lora_config(doubled(table) if twice else table)
        return {**config.to_dict(), "inference_mode": True}, peft_names(found)

    def _active(self) -> RunState:
        return self.runs[self.host.model.active_adapter]

    def _average(self, run: RunState) -> dict[str, Pair]:
        """Module -> (A, B) of the average, computed once."""
        if "average" not in run.extra:
            snapshots, method = run.extra["snapshots"], run.spec.average
            assert method is not None
            run.extra["average"] = {
                module: average(method, {step: kept[module] for step, kept in snapshots.items()}, len(a_ri))
                for module, (a_ri, _) in next(iter(snapshots.values())).items()
            }
        return run.extra["average"]
