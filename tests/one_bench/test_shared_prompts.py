"""The samples of a prompt are the same whether it is computed once for all or by each of them."""

from __future__ import annotations

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.pipeline


def counting():
    """What lets an engine count the blocks that it copies: called in the engine's process.

    A function within a function, which Ray sends as it is: the engine cannot import the tests.
    """

    def count_copies(engine):
        connector = engine.llm.engine_core.engine_core.scheduler.connector
        chosen, engine.copies = connector.build_connector_meta, 0

        def counted(output):
            copies = chosen(output)
            engine.copies += sum(map(len, copies.targets.values()))
            return copies

        connector.build_connector_meta = counted

    return count_copies


def test_samples_of_a_prompt_are_those_of_requests_that_come_one_by_one(bench, attach):
    from rankrl.ppo.serving import Requests

    trainer = attach("ranks=[8]")
    (engine,) = bench.services.engines
    prompts = [prompt for item in bench.train_items[:4] for prompt in [bench.prompter(item)] * 6]
    seeds = [7 * i for i in range(len(prompts))]
    ray.get(engine.__ray_call__.remote(counting()))
    for adapter in (None, trainer.adapter_id):
        together = ray.get(engine.generate_batch.remote(adapter, Requests(prompts, seeds, 1.0, 8)))
        assert ray.get(engine.__ray_call__.remote(lambda engine: engine.copies)) >= 20
        alone = [
            ray.get(engine.generate_batch.remote(adapter, Requests([prompt], [seed], 1.0, 8)))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        assert together.token_ids.tolist() == np.concatenate([response.token_ids for response in alone]).tolist()
        assert together.logprobs.tobytes() == np.concatenate([response.logprobs for response in alone]).tobytes()
