"""Every rule at every knob, and every value of a listed setting, says what speaks for it."""

from __future__ import annotations

import pytest
from conftest import ROOT, rankrl, runs_of

from rankrl.recipe import (
    advantage_section,
    allocation_section,
    anchor_section,
    average_section,
    init_section,
    optimizer_section,
)
from rankrl.recipe.evidence import EVIDENCE, settings
from rankrl.recipe.rules import RULES, allowed
from rankrl.recipe.schema import LR_SHAPES

WORDS = ("measured here", "derived", "conjecture")
KNOBS = [*runs_of("demo", "ranks=[1]", "seeds=[0]")[0].knobs]
VALUES = {
    "advantage.method": advantage_section.METHODS,
    "init.method": (*init_section.DRAWN, *init_section.FROM_WEIGHTS, *init_section.MEASURED),
    "allocation.method": allocation_section.METHODS,
    "trained": optimizer_section.TRAINED,
    "optimizer.method": optimizer_section.OPTIONS,
    "lr_shape": LR_SHAPES,
    "trust_region.on": (False, True),
    "kl_anchor.reference": anchor_section.REFERENCES,
    "kl_anchor.place": anchor_section.PLACES,
    "average.method": (None, *average_section.SHARES),
    "brakes.on": (False, True),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_rule_of_a_knob_has_evidence(knob):
    for rule in allowed(knob):
        assert RULES[rule].evidence_at(knob).startswith(WORDS), f"{knob} by {rule}"


def test_every_value_of_a_setting_has_evidence():
    assert {key: {*values} for key, values in EVIDENCE.items()} == {key: {*values} for key, values in VALUES.items()}
    assert all(text.startswith(WORDS) for values in EVIDENCE.values() for text in values.values())


def test_explain_shows_it():
    words = ("ranks=[1]", "seeds=[0]", "trust_region.target=2e-3", "advantage.method=history")
    found = {key: (value, text) for key, value, text in settings(runs_of("low_rank", *words)[0].recipe)}
    assert found["trust_region"][0] == "on" and found["trust_region"][1].startswith(
        "measured here: from a rate 4 times"
    )
    assert found["advantage.method"][0] == "history" and found["brakes"][0] == "off"
    said = " ".join(rankrl("explain", "recipes/low_rank.yaml", *words).stdout.split())
    assert "trust_region on measured here" in said and "lr_ratio" in said and "4 loses .05 at rank 1" in said


def test_measured_evidence_names_its_seeds():
    """A gain without the number of its seeds cannot be judged."""
    texts = [text for row in RULES.values() for text in (row.evidence, *row.at_knob.values())]
    texts += [text for values in EVIDENCE.values() for text in values.values()]
    with_gains = [text for text in texts if "+." in text or " -." in text]
    assert len(with_gains) > 25 and all(" seeds)" in text for text in with_gains)
    assert "recipe/evidence.py" in (ROOT / "docs" / "rules.md").read_text()
