"""How the network was chosen follows from recipe and figures, in words too."""

import pytest

from glprune.report import rules
from glprune.schema.recipe import Recipe
from tests.unit.audit.attack import failed, told, verified
from tests.unit.audit.attacks_selection import ATTACKS

LEAST = {
    "task": "binary",
    "model": {"factory": "networks.py:plain"},
    "data": {"file": "data.parquet", "target": "y"},
    "penalty": {"inputs": {"strength": 1.0}, "hidden": {"strength": 1.0}},
}


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_a_lie_on_the_choice_is_found(attack, sealed, audited, producer, tmp_path, pictures_agree):
    verdict = verified(attack, audited, *producer, tmp_path / "bundle", sealed)
    assert verdict.exit_code == attack.exit_code, told(verdict)
    assert (attack.check if sealed else "C2") in failed(verdict), told(verdict)


@pytest.mark.parametrize(
    ("target", "rule", "other"),
    [
        ({"max_features": 3}, rules.limit_rule(3, "input feature"), rules.limit_rule(4, "input feature")),
        ({"max_features": 3}, rules.on_the_way_rule(3, "input feature"), rules.lambda_rule(0.1)),
        ({"lambda": 0.1}, rules.lambda_rule(0.1), rules.lambda_rule(0.2)),
        ({"parameters": "30%"}, rules.filled_rule(1234, "parameter"), rules.filled_rule(1234, "hidden unit")),
        ({"macs": 5000}, rules.limit_rule(5000, "multiply-accumulate"), rules.limit_rule(50, "parameter")),
        ({"latency": "50%"}, rules.limit_rule(99, "multiply-accumulate"), rules.limit_rule(99, "parameter")),
        ({"max_features": 3, "max_hidden": 4}, rules.limit_rule(4, "hidden unit"), rules.limit_rule(3, "hidden unit")),
        ({"frontier": [5, 2]}, rules.limit_rule(2, "input feature"), rules.limit_rule(3, "input feature")),
        (
            {"max_drop": {"metric": "auroc", "amount": 0.01}},
            "auroc after the refit at most 0.01 worse than the original network's",
            "auroc after the refit at most 0.02 worse than the original network's",
        ),
    ],
)  # fmt: skip
def test_stages_have_the_rules_to_which_a_target_leads(target, rule, other):
    recipe = Recipe.model_validate(LEAST | {"target": target})
    sizes = target.get("frontier", [])
    assert rules.is_stage_rule(rule, recipe, sizes)
    assert not rules.is_stage_rule(other, recipe, sizes)
    assert rules.is_stage_rule(rules.only_kept_rule(rules.MAGNITUDE), recipe, sizes)
    assert not rules.is_stage_rule("", recipe, sizes)
