"""`services=by_rank`: engines are started anew for the runs of each serving rank."""

import json

import pytest
from conftest import rankrl

WORDS = ["ranks=[32,1]", "seeds=[0]", "steps=1", "scale.sampling.eval_samples=1", "scale.sampling.base_samples=1"]


@pytest.mark.pipeline
def test_each_serving_rank_has_engines_of_its_own(tmp_path):
    done = rankrl("sweep", "recipes/demo.yaml", *WORDS, "services=by_rank", "--runs", str(tmp_path), timeout_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("services are up after") == 2
    assert done.stdout.index("r1-b16-s0 finished") < done.stdout.index("r32-b16-s0 finished")  # small slots first
    for rank in (1, 32):
        (line,) = (tmp_path / "demo" / f"r{rank}-b16-s0" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line)["sync_gap_nats"] < 1e-4
