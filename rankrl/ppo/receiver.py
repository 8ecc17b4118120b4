"""vLLM's worker extension, inside the engine process: it loads adapters from memory."""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from rankrl.ppo.serving import check_known, digest, is_b, unpack, with_a


class AdapterReceiver:
    """Methods that vLLM mixes into its worker class (`worker_extension_cls`)."""

    model_runner: Any

    def receive_adapter(
        self, adapter_id: int, names: list[str], shapes: list[tuple[int, int]], dtype: str, data: bytes, a_stays: bool
    ) -> str:
        """Puts an adapter of scale 1 in place of adapter `adapter_id`.

        Returns the SHA-256 of the tensors that vLLM is given. With `a_stays`, A is kept for the
        payloads of this adapter that have B alone.

        The steps are those of vLLM 0.29 LRUCacheWorkerLoRAManager.add_adapter with load_inplace,
        without the file.
        """
        manager = self.model_runner.lora_manager
        tensors = with_a(unpack(names, shapes, dtype, data), self._kept_a().get(adapter_id, {}))
        if a_stays:
            self._kept_a()[adapter_id] = {name: tensor for name, tensor in tensors.items() if not is_b(name)}
        rank = max(tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name)
        targets = sorted({name.split(".")[-3] for name in tensors})
        helper = PEFTHelper.from_dict({"r": rank, "lora_alpha": rank, "target_modules": targets})
        helper.validate_legal(manager.lora_config)
        adapters = manager._adapter_manager
        mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
        lora = LoRAModel.from_lora_tensors(
            adapter_id,
            tensors,
            helper,
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            weights_mapper=mapper.get_rename_mapper() if mapper else None,
        )
        check_known(lora.loras, adapters.modules, adapters.packed_modules)
        held = digest(list(tensors), [t for layer in lora.loras.values() for t in (layer.lora_a, layer.lora_b)])
        adapters.remove_adapter(adapter_id)
        if len(adapters) + 1 > adapters.capacity:
            adapters.remove_oldest_adapter()
        adapters.add_adapter(lora)
        adapters.activate_adapter(adapter_id)
        return held

    def _kept_a(self) -> dict[int, dict[str, torch.Tensor]]:
        """Adapter -> its frozen A. vLLM makes the object that has it, and calls no constructor."""
        return vars(self).setdefault("kept_a", {})

    def drop_adapter(self, adapter_id: int) -> None:
        self._kept_a().pop(adapter_id, None)
        self.model_runner.lora_manager.remove_adapter(adapter_id)

    def clean_cache(self) -> None:
        """Replaces NaN and infinity in the KV cache, which a diverged run leaves there.

        Attention reads a block to its end and multiplies entries after the end of a sequence by 0.
        But 0 times NaN is NaN, so the next run that gets the freed block would diverge too. Called
        before freed blocks are used again.
        """
        for cache in self.model_runner.kv_caches:
            torch.nan_to_num_(cache, nan=0.0, posinf=0.0, neginf=0.0)
