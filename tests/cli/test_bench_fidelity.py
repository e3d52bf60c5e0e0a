"""haqsearch bench fidelity and devices: what their files say is what the policies give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from haqsearch.cli.bench.devices import BEGIN, END
from haqsearch.cli.bench.ranks import rank_agreement, spearman
from haqsearch.cli.bench.search_page import device_table, fidelities
from haqsearch.evaluate.measures import MEASURES
from haqsearch.spec import OBJECTIVES, Policy

from .conftest import DIGITS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "digits.toml").write_text(DIGITS.replace("search = 100", "search = 150"))
    return folder


def test_fidelity_ranks_policies_on_every_rung(base, call):
    asked = (
        "bench",
        "fidelity",
        "digits.toml",
        "--policies",
        "10",
        "--accurate",
        "4",
        "--trained",
        "3",
        "--out",
        "out",
    )
    result = call(*asked, "--set", "qat.steps=3", cwd=base)
    assert result.code == 0, result.err
    found = json.loads((base / "out" / "fidelity-digits.json").read_text())
    assert found["drawn"] == {"random": 5, "good": 5}
    rows = found["policies"]
    assert len({row["policy_digest"] for row in rows}) == 10
    assert all(cost <= found["limits"][metric] for row in rows for metric, cost in row["costs"].items())
    assert [sum(rung in row["scores"] for row in rows) for rung in ("ptq:100", "ptq", "accurate", "qat")] == [
        10,
        10,
        4,
        3,
    ]
    by_name = {(rung["rung"], rung["objective"]): rung for rung in found["rungs"]}
    assert len(by_name) == 4 * len(OBJECTIVES) + 1 + 2 * len(MEASURES)
    for rung in ("sensitivity", *MEASURES):
        added = [row["scores"][rung]["kl"] for row in rows]
        assert by_name[rung, "kl"]["next"] == "ptq:100"
        assert by_name[rung, "kl"]["with_next"]["spearman"] == pytest.approx(
            spearmanr(added, [row["scores"]["ptq:100"]["kl"] for row in rows]).statistic, abs=1e-3
        )
    for name, objective in OBJECTIVES.items():
        part, whole = (np.array([row["scores"][rung][name] for row in rows]) for rung in ("ptq:100", "ptq"))
        with_next = by_name["ptq:100", name]["with_next"]
        assert with_next["spearman"] == pytest.approx(spearmanr(part, whole).statistic, abs=1e-3)
        assert with_next["interval"][0] <= with_next["spearman"] <= with_next["interval"][1]
        report = [row["report"]["ptq"]["accuracy"] for row in rows]
        with_report = by_name["ptq", name]["with_report"]["spearman"]
        assert with_report == pytest.approx(spearmanr(objective.sign * whole, report).statistic, abs=1e-3)
        assert found["objectives"]["spearman"][name] == pytest.approx(with_report, abs=1e-3)
    best = found["objectives"]["best"]
    assert best not in found["objectives"]["alike"]
    page = "\n".join(fidelities(base / "out"))
    assert f"**{best}**" in page and "| ptq:100 | kl |" in page
    # Once more: nothing is scored again, and the figures are the same but for the commit's.
    size = (base / "out" / "runs" / "scores.jsonl").stat().st_size
    assert call(*asked, "--set", "qat.steps=3", cwd=base).code == 0
    assert (base / "out" / "runs" / "scores.jsonl").stat().st_size == size
    assert json.loads((base / "out" / "fidelity-digits.json").read_text())["policies"] == rows


def test_devices_finds_a_policy_for_each_and_prices_it_on_all(base, call):
    (base / "page.md").write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    devices = ("bitfusion", "bismo-edge")
    asked = ("--agent", "random", "--evaluations", "6", "--searches", "3", "--out", "out", "--write", "page.md")
    words = [word for name in devices for word in ("--device", name)]
    result = call("bench", "devices", "digits.toml", *words, *asked, "--as-good-as", "uniform:w4a6", cwd=base)
    assert result.code == 0, result.err
    found = json.loads((base / "out" / "devices-digits.json").read_text())
    assert tuple(found["policies"]) == devices
    for name, policy in found["policies"].items():
        assert policy["score"] >= found["target"]["score"]
        assert 1 <= len(policy["tried"]) <= 3
        own = policy["costs"][name]
        assert own["share"] <= policy["tried"][0][0] + 1e-4, "dearer than the policy that it is to be as good as"
        cost = call(
            "hw", "compare", "digits.toml", "--policy", _file(base, policy), "--hardware", *devices, "--json", cwd=base
        )
        assert cost.code == 0, cost.err
        (priced,) = json.loads(cost.out)["policies"].values()
        for other in devices:
            assert policy["costs"][other]["value"] == pytest.approx(priced[other]["value"], rel=1e-9)
    lines = device_table(found)
    beaten = [n for n in devices if any(p["costs"][n]["value"] < found["policies"][n]["costs"][n]["value"]
                                        for p in found["policies"].values())]  # fmt: skip
    said = "Every policy is the best of them on the device that it was found for"
    assert (said in lines[-1]) == (not beaten)
    assert all(f"n {name} the policy found for" in lines[-1] for name in beaten)
    page = (base / "page.md").read_text()
    assert page == f"before\n{BEGIN}\n" + "\n".join(lines) + f"\n{END}\nafter\n"


def _file(base: Path, policy: dict) -> str:
    from haqsearch.search.records import read_policy

    path = base / f"{policy['policy_digest']}.json"
    found: Policy = read_policy(policy["policy"])
    path.write_text(json.dumps(found.to_json()))
    return str(path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_spearman_is_that_of_scipy_and_nothing_ranks_nothing(pairs):
    x, y = zip(*pairs, strict=True)
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    else:
        assert spearman(x, y) == 0


def test_agreement_is_told_with_how_sure_it_is():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    assert rank_agreement(x, x) == {"count": 40, "spearman": 1.0, "interval": [1.0, 1.0], "kendall": 1.0}
    loose = rank_agreement(x, x + rng.normal(size=40))
    low, high = loose["interval"]
    assert -1 <= low < loose["spearman"] < high <= 1 and high - low > 0.1
    assert rank_agreement(x[:2], x[:2]) is None
