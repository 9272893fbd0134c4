"""The page: its numbers are the tables', names are text on it, and it needs nothing beside it."""

import base64
import itertools
import json
import re
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bnstudy.runs.long_table import Row
from bnstudy.study.analysis import Analysis
from bnstudy.study.load.matrix import KEYS, load_columns
from bnstudy.study.present.cards import Finding, compose_cards
from bnstudy.study.present.page import render_page
from bnstudy.study.present.page.page_tables import collect_page_tables
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.study import load
from tests.study.studies import Studies

MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def analysis(studies: Studies) -> Analysis:
    """Analysis of two norms, two depths and four seeds, with a value that is missing."""
    generator = np.random.default_rng(0)
    for norm in ("none", "batchnorm"):
        for depth in (2, 4):
            for seed in range(4):
                layers = generator.normal(size=depth)
                if (norm, depth, seed) == ("none", 2, 1):
                    layers[0] = np.nan
                studies.add(
                    norm,
                    seed,
                    f"model.depth={depth}",
                    layers={"silhouette": layers, "unit_sparsity": layers**2},
                    accuracy=generator.uniform(),
                )
    return Analysis(load(studies.folder))


def data_of(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    found: dict[str, Any] = json.loads(text)
    return found


def numbers(text: str, *shape: int) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(shape)


@pytest.mark.slow
def test_the_pages_numbers_are_the_tables(analysis: Analysis) -> None:
    data = data_of(render_page(analysis))
    keys, values = load_columns(analysis.study)
    assert [tuple(key[name] for name in KEYS) for key in data["keys"]] == list(
        keys[KEYS].itertuples(index=False, name=None)
    )
    shown = numbers(data["values"]["mean"], len(values), 1, len(keys))[:, 0]
    np.testing.assert_allclose(shown, values, rtol=1e-6)

    points = [tuple(point) for point in data["effects"]["points"]]
    assert points == [(None,), ("2",), ("4",)]
    place = {tuple(key[name] for name in KEYS): n for n, key in enumerate(data["keys"])}
    for field in ("n", "difference", "low", "high", "p", "p_adjusted", "cohens_d"):
        shown = numbers(data["effects"]["fields"][field], 1, len(points), len(keys))
        for row in analysis.effects.to_dict("records"):
            depth = None if pd.isna(row["depth"]) else f"{row['depth']:g}"
            at = (0, points.index((depth,)), place[tuple(row[name] for name in KEYS)])
            np.testing.assert_allclose(shown[at], float(row[field]), rtol=1e-6)


@pytest.mark.slow
def test_the_norms_to_choose_among_are_those_compared_with_the_baseline(studies: Studies) -> None:
    for number, norm in enumerate(("none", "layernorm", "batchnorm")):
        for seed in range(3):  # with fewer pairs there are no effect sizes
            studies.add(norm, seed, layers={"silhouette": [number + seed**number]})
    html = render_page(Analysis(load(studies.folder), "layernorm"))
    (choice,) = re.findall(r'<select data-choice="treatment">(.*?)</select>', html, re.S)
    assert re.findall(r'value="(\d)">([^<]+)<', choice) == [
        ("1", "no normalization"),
        ("2", "BatchNorm"),
    ]
    assert data_of(html)["treatments"] == ["LayerNorm", "no normalization", "BatchNorm"]


@pytest.mark.slow
def test_the_page_knows_which_layers_a_run_has(analysis: Analysis) -> None:
    data = data_of(render_page(analysis))
    for group in data["groups"]:
        assert group["layers"] == {"act": int(group["point"][0])}
    silhouette = [key for key in data["keys"] if key["metric"] == "silhouette"]
    names = {
        layers: [key["place"] for key in silhouette if key["layers"] == layers]
        for layers in (0, 2, 4)
    }
    assert names[0] == [f"depth {share} %" for share in (0, 25, 50, 75, 100)]
    assert names[2] == ["block01", "block02"]
    assert names[4] == ["block01", "block02", "block03", "block04"]


@pytest.mark.slow
def test_what_differs_besides_the_norm_is_on_it(studies: Studies) -> None:
    for seed in range(2):
        studies.add("none", seed, "optim.lr=0.01", layers={"silhouette": [0.1 + seed]})
        studies.add("batchnorm", seed, "optim.lr=0.1", layers={"silhouette": [0.2 + seed]})
    html = render_page(Analysis(load(studies.folder)))
    words = "learning rate (0.1 with BatchNorm, 0.01 with no normalization)"
    head, _, rest = html.partition('<nav aria-label="Sections">')
    assert f"differ in more than the norm:</strong> {words}." in head
    assert f"They also differ in {words}." in rest
    assert "except the norm and the differences listed above" in rest
    assert "differ in nothing else" not in html


@pytest.mark.slow
def test_every_sentence_of_the_verdict_is_on_it(analysis: Analysis) -> None:
    html = render_page(analysis)
    for sentence in compose_verdict(analysis):
        escaped = sentence.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&#39;")
        assert escaped in html


def test_a_card_says_direction_size_certainty_and_n(studies: Studies) -> None:
    for seed, norm in itertools.product(range(6), ("none", "batchnorm")):
        change = (norm == "batchnorm") * (0.2 + seed / 100)
        layers = {"unit_sparsity": [0.5 - change, 0.5 + 2 * change], "silhouette": [seed / 10, 0.1]}
        studies.add(norm, seed, layers=layers, accuracy=0.7 + change)
    (card,) = compose_cards(Analysis(load(studies.folder)))
    assert card.title == "BatchNorm compared with no normalization"
    assert card.findings == [
        Finding(
            *("test accuracy", "▲", "higher", "+0.225 [0.2, 0.25]", "0.925 against 0.700"),
            "significant: p = 0.0312, adjusted p = 0.0312, 6 pairs",
        ),
        Finding(
            *("sparsity", "◆", "higher in 1 and lower in 1 of 2 layers"),
            *("+0.45 [0.4, 0.5]", "share of zero activations, block 2"),
            "significant: p = 0.0312, adjusted p = 0.0312, 6 pairs",
        ),
        Finding(
            *("clustering", "○", "no significant difference in 2 layers", "0 in every pair"),
            *(
                "silhouette of the classes, block 2",
                "not significant: p = 1, adjusted p = 1, 6 pairs",
            ),
        ),
    ]


def test_a_card_is_about_a_difference_that_is_significant_after_adjustment(
    studies: Studies,
) -> None:
    for seed, norm in itertools.product(range(8), ("none", "batchnorm")):
        change = (norm == "batchnorm") * (0.1 + seed / 100)
        uncertain = (norm == "batchnorm") * {6: -0.1, 7: -0.3}.get(seed, 0.5)
        none = [
            0.5 + (norm == "batchnorm") * (-1) ** seed * (seed + layer) / 20 for layer in (1, 4)
        ]
        layers = {"unit_sparsity": [0.1 + change, 0.4 + uncertain, *none]}
        studies.add(norm, seed, layers=layers, accuracy=0.7)
    (card,) = compose_cards(Analysis(load(studies.folder)))
    _, sparsity = card.findings
    assert sparsity.direction == "higher in 2 of 4 layers; after adjustment, significant in 1"
    assert sparsity.detail == "share of zero activations, block 1"
    assert sparsity.certainty.startswith("significant: p = 0.00781, adjusted p =")


def test_the_method_and_the_verdict_name_the_same_families_of_tests(studies: Studies) -> None:
    for seed, norm in itertools.product(range(3), ("none", "batchnorm")):
        studies.add(norm, seed, accuracy=0.5 + seed / 10 * (norm == "none"))
    sentence = "A family contains the tests of all treatments. Accuracy and loss are one family."
    assert render_page(Analysis(load(studies.folder))).count(sentence) == 2


def test_cards_of_few_pairs_claim_nothing(studies: Studies) -> None:
    for norm, value in (("none", 0.1), ("batchnorm", 0.2), ("groupnorm", 0.3)):
        studies.add(norm, layers={"silhouette": [value]}, accuracy=value)
    studies.add("layernorm", 1)
    *cards, alone = compose_cards(Analysis(load(studies.folder)))
    assert [finding[1:] for card in cards for finding in card.findings][::2] == [
        ("○", "not tested", "+0.1", "0.200 against 0.100", "1 pair"),
        ("○", "not tested", "+0.2", "0.300 against 0.100", "1 pair"),
    ]
    assert "they have no pair of runs" in alone.note
    assert not alone.findings


@pytest.mark.slow
def test_tables_begin_with_the_largest_effect_and_have_plain_names(analysis: Analysis) -> None:
    table = collect_page_tables(analysis)["performance"]
    assert table is not None
    names = ["split", "metric", "pairs", "mean of baseline", "mean of norm", "difference"]
    assert list(table)[:6] == names
    assert table.attrs["shared"] == "BatchNorm"
    sizes = table["Cohen’s d"].abs().dropna()
    assert sizes.is_monotonic_decreasing
    assert table["95 % interval"].str.match(r"\[−?\S+, −?\S+\]|–").all()


def test_names_are_text(studies: Studies) -> None:
    studies.folder = studies.folder.with_name(MARKUP)
    for norm in ("none", "batchnorm"):
        studies.add(norm, layers={MARKUP: [1.0]}, overrides=[f"study={MARKUP}"])
    html = render_page(Analysis(load(studies.folder)), other_runs=MARKUP, files=[MARKUP])
    assert MARKUP not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert MARKUP in data_of(html)["metrics"]


@pytest.mark.slow
def test_no_credential_reaches_it(studies: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", "my very own key")
    studies.add("none", overrides=[f"+logger.api_key={key}", "+token=hunter2", "seed=0"])
    error = f"401 of https://me:hunter2@example.org with {key} and my very own key"
    studies.add("batchnorm", status="failed", attempts=[{"status": "failed", "error": error}])
    html = render_page(Analysis(load(studies.folder)))
    for secret in (key, "hunter2", "my very own key"):
        assert secret not in html
    assert "[removed]" in html


@pytest.mark.slow
def test_it_loads_nothing(analysis: Analysis) -> None:
    html = render_page(analysis)
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert set(re.findall(r"(?:src|href)=\"(.)", without_scripts)) == {"#"}
    assert "default-src 'none'" in html
    policy = re.findall(r"script-src ([^;]*);", html)[0]
    assert "unsafe" not in policy
    assert len(html.encode()) < 2.5e6


@pytest.mark.slow
def test_runs_that_are_too_many_are_shown_as_means_over_seeds(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnstudy.study.present.page.embedded.MAX_NUMBERS", 10)
    html = render_page(analysis)
    data = data_of(html)
    assert "means and standard deviations over seeds instead of single runs" in html
    assert [group["n"] for group in data["groups"]] == [4] * 4
    keys, values = load_columns(analysis.study)
    chosen = (analysis.study.results["treatment"] == "none") & (
        analysis.study.results["depth"] == 4
    )
    (group,) = (
        group["index"]
        for group in data["groups"]
        if group["point"] == ["4"] and data["treatments"][group["treatment"]] == "no normalization"
    )
    for field, expected in (("mean", np.nanmean), ("sd", np.nanstd)):
        more = {"ddof": 1} if field == "sd" else {}
        shown = numbers(data["values"][field], 4, 1, len(keys))[group, 0]
        of_model = keys.index[keys["place_index"] == 0]
        np.testing.assert_allclose(
            shown[of_model], expected(values[chosen][:, of_model], axis=0, **more), rtol=1e-5
        )


@pytest.mark.slow
def test_of_one_pair_it_claims_nothing(studies: Studies) -> None:
    for norm, value in (("none", 0.1), ("batchnorm", 0.2)):
        studies.add(norm, layers={"silhouette": [value]}, accuracy=value)
    html = render_page(Analysis(load(studies.folder)))
    assert "add 5 seeds for each treatment" in html
    assert "Rank correlations</h3>" not in html
    data = data_of(html)
    fields = data["effects"]["fields"]
    shape = (1, len(data["effects"]["points"]), len(data["keys"]))
    assert np.isfinite(numbers(fields["difference"], *shape)).all()
    for field in ("low", "high", "p", "p_adjusted", "cohens_d", "rank_biserial"):
        assert np.isnan(numbers(fields[field], *shape)).all(), field


@pytest.mark.slow
@pytest.mark.parametrize("most", [10, 1_000_000])
def test_runs_that_diverged_are_counted_in_its_figures(
    studies: Studies, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("bnstudy.study.present.page.embedded.MAX_NUMBERS", most)
    for seed in range(4):
        studies.add("batchnorm", seed, layers={"silhouette": [0.1]})
        status = "diverged" if seed else "completed"
        value = np.nan if seed else 0.2
        studies.add("none", seed, layers={"silhouette": [value]}, status=status)
    data = data_of(render_page(Analysis(load(studies.folder))))
    diverged = dict.fromkeys(data["treatments"], 0)
    for group in data["groups"]:
        diverged[data["treatments"][group["treatment"]]] += group["diverged"]
    assert diverged == {"no normalization": 3, "BatchNorm": 0}


@pytest.mark.slow
def test_what_went_wrong_is_on_it(studies: Studies) -> None:
    studies.add("none")
    studies.add("batchnorm")
    studies.add("batchnorm", 1, status="diverged", accuracy=0.1)
    studies.add(
        "none", 1, status="failed", attempts=[{"status": "failed", "error": "out of memory"}]
    )
    html = render_page(Analysis(load(studies.folder)))
    assert "out of memory" in html
    assert "1 of 2 runs with BatchNorm diverged" in html
    assert "4 runs: 2 completed, 1 diverged, 1 failed" in html


@pytest.mark.slow
def test_values_of_the_network_are_on_it(studies: Studies) -> None:
    for norm, value in (("none", 2.0), ("batchnorm", 1.0)):
        record = studies.add(norm)
        record.table.add_rows([Row(5, 9, "train", -1, "model", None, "smoothness", value, None)])
    html = render_page(Analysis(load(studies.folder)))
    assert '<option value="train:smoothness">smoothness, train</option>' in html
    assert "<td>smoothness</td>" in html
    studies.folder.rename(studies.folder.with_name("without"))
    studies.add("none")
    assert "Optimization" not in render_page(Analysis(load(studies.folder)))


@pytest.mark.slow
def test_conditions_of_the_hessian_are_on_it(studies: Studies) -> None:
    for norm, mode in (("none", "eval"), ("batchnorm", "eval"), ("layernorm", "train")):
        record = studies.add(norm, 0, "callbacks=hessian", f"callbacks.hessian.batchnorm={mode}")
        where = (5, 9, "train", -1, "model", None)
        record.table.add_rows(
            [
                Row(*where, "hessian_eigenvalue_1", 2.0, None),
                Row(*where, "effective_lr", 0.1, None),
            ]
        )
    html = render_page(Analysis(load(studies.folder)))
    conditions = (
        "at most 256 samples, BatchNorm with its running statistics "
        "(callbacks.hessian.batchnorm=eval), trace estimated from 20 random vectors (2 runs); or "
    )
    assert conditions in html
    assert (
        "BatchNorm with the statistics of these samples (callbacks.hessian.batchnorm=train)" in html
    )
    assert "<td>largest eigenvalue of the Hessian</td>" in html
    assert ">effective learning rate (effective_lr), train</option>" in html
    assert "<td>effective learning rate</td>" in html


@pytest.mark.slow
def test_label_noise_is_in_its_header(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        studies.add(norm, 0, "data.label_noise=0.2", layers={"silhouette": [0.1]})
    head, _, _ = render_page(Analysis(load(studies.folder))).partition("<nav")
    assert (
        "<p>20 % of the training labels are wrong (data.label_noise). Accuracy, loss and " in head
    )
    for norm in ("none", "batchnorm"):
        studies.add(norm, 0, "data.label_noise=0", layers={"silhouette": [0.1]})
    html = render_page(Analysis(load(studies.folder)))
    assert "<p>0 or 20 % of the training labels are wrong (data.label_noise), depending on" in html


@pytest.mark.slow
def test_metrics_that_do_not_apply_are_no_problem(studies: Studies) -> None:
    record = studies.add("none", layers={"nc3": [0.1]})
    where = (5, 9, "train", 1, "block02", "act")
    record.table.add_rows(
        [
            Row(*where, "nc3", nan, "does not apply: the last linear layer reads something else"),
            Row(*where, "dunn", nan, "there is only one class"),
        ]
    )
    html = render_page(Analysis(load(studies.folder)))
    assert "nc3 (1 layer: the last linear layer reads something else)" in html
    assert "<td>Dunn index of the classes</td>" in html
    assert "<td>distance of weights and class means (NC3)</td>" not in html


@pytest.mark.slow
def test_runs_at_chance_level_are_marked(studies: Studies) -> None:
    for seed, accuracy in enumerate([0.1, 0.114, 0.12]):
        record = studies.add("none", seed, train_accuracy=accuracy)
        assert record.description.data
        record.description.data.train = 4000
        record.description.data.classes = list("0123456789")
        record.save()
    study = load(studies.folder)
    html = render_page(Analysis(study))
    assert "2 of 3 runs with no normalization are at chance level" in html
    assert list(study.runs["at_chance"]) == [True, True, False]
    assert html.count("its training accuracy is not clearly above chance") == 2


@pytest.mark.slow
def test_similarities_of_runs_that_were_trained_again_are_not_on_it(studies: Studies) -> None:
    record = studies.add("none", layers={"silhouette": [1.0, 2.0]})
    folder = studies.folder / "similarity" / "one"
    folder.mkdir(parents=True)
    (folder / "cka.csv").write_text(",block01\nblock01,1\n")
    for name, attempts, is_shown in (
        (record.folder.name, 1, True),
        (record.folder.name, 0, False),
        ("gone", 1, False),
    ):
        run = {"folder": f"multirun/study/{name}", "epoch": 5, "attempts": attempts}
        facts = {"runs": [run], "split": "train", "samples": 10}
        (folder / "similarity.json").write_text(json.dumps(facts))
        found = data_of(render_page(Analysis(load(studies.folder))))["similarities"]
        assert bool(found) == is_shown


@pytest.mark.slow
def test_similarities_that_were_measured_are_on_it(studies: Studies) -> None:
    studies.add("none", layers={"silhouette": [1.0, 2.0]})
    folder = studies.folder / "similarity" / "one-other"
    folder.mkdir(parents=True)
    runs = [{"folder": "a/none-seed0", "epoch": 5}, {"folder": "a/none-seed1", "epoch": 5}]
    facts = {"runs": runs, "split": "train", "samples": 10}
    facts["similarities"] = {"cka": {"direction": "higher"}}
    (folder / "similarity.json").write_text(json.dumps(facts))
    (folder / "cka.csv").write_text(",block01,block02\nblock01,1,0.5\nblock02,0.25,\n")
    html = render_page(Analysis(load(studies.folder)))
    (found,) = data_of(html)["similarities"]
    assert found["names"] == ["none-seed0, epoch 5", "none-seed1, epoch 5"]
    assert found["matrices"]["cka"]["values"] == [[1, 0.5], [0.25, None]]
    assert found["matrices"]["cka"]["direction"] == "higher"
    assert 'data-figure="similarity"' in html
