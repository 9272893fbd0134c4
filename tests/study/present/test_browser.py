"""The page in a browser, as its readers see it; screenshots stay in pytest's folder."""

import itertools
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from bnstudy import measure
from bnstudy.study.present.report_files import write_page, write_report
from tests.conftest import SMALL, CommandLine
from tests.study.present.test_page import MARKUP
from tests.study.studies import Studies
from tests.study.test_maps import CLASSES, keep_map

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RUN = (*SMALL, "metrics=fast", "norm=batchnorm,none", "model.depth=2,4", "optim.lr=0.02,0.05")

expect.set_options(timeout=30_000)  # drawing takes seconds where others work beside it

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture
def folder(
    shared_folder: Path, command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The report of a real study, of two depths and two learning rates."""
    if not (shared_folder / "report").exists():
        assert command_line(*RUN, "-m").returncode == 0
        monkeypatch.setattr("bnstudy.trained.embeddings.list_methods", lambda: ["pca"])
        study = "multirun/mnist5k_cnn"
        options = ("--samples", "100", "--sites", "act", "features")
        assert command_line("map", study, *options, main=measure.main).returncode == 0
        # Figures for print take long.
        monkeypatch.setattr("bnstudy.study.present.figures.draw_figures", lambda _: [])
        write_report(tmp_path / "multirun" / "mnist5k_cnn", output=shared_folder / "report")
    return shared_folder / "report"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root it runs without a sandbox only.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """A page's errors and messages, and its requests to the network."""
    return []


@pytest.fixture
def page(browser: Browser, folder: Path, complaints: list[str]) -> Page:
    return opened(browser, folder, complaints)


def opened(browser: Browser, folder: Path, complaints: list[str], width: int = 1200) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: complaints.append(request.url))
    address = (folder / "index.html").as_uri()
    page.goto(address)
    complaints.remove(address)
    return page


def drawn(page: Page) -> list[Locator]:
    """All figures, each of which has come into sight."""
    figures = page.locator("figure[data-figure]").all()
    for figure in figures:
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_attribute("aria-busy", "false")
    return figures


def captions(page: Page) -> dict[str | None, str]:
    return {
        figure.get_attribute("data-figure"): figure.locator("figcaption").inner_text()
        for figure in drawn(page)
    }


def test_every_figure_is_drawn_and_nothing_is_complained_of(
    page: Page, complaints: list[str], tmp_path: Path
) -> None:
    figures = drawn(page)
    assert len(figures) >= 10
    for figure in figures:
        assert figure.locator(".main-svg .trace, .main-svg .hm").count(), figure.inner_text()
        assert figure.locator("figcaption").inner_text()
    assert complaints == []
    page.screenshot(path=tmp_path / "light.png", full_page=True)


def test_browsers_that_cannot_unpack_the_figures_show_their_numbers(
    browser: Browser, folder: Path
) -> None:
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((folder / "index.html").as_uri())
    figure = drawn(page)[0]
    expect(figure.locator(".plot")).to_contain_text("too old to draw")
    assert figure.locator("figcaption").inner_text()
    figure.locator("summary").click()
    assert figure.locator("tbody tr").count()


def test_bars_of_norms_are_side_by_side(page: Page) -> None:
    drawn(page)
    traces = page.locator("[data-figure=sparsity-levels] .plot").evaluate(
        "plot => plot.data.map((trace) => [trace.x, trace.customdata])"
    )
    (ours, names), (theirs, same_names) = traces
    assert all(abs(x - beside) > 0.05 for x, beside in zip(ours, theirs, strict=True))
    assert [round(x) for x in ours] == [round(x) for x in theirs] == [*range(len(names))]
    assert names == same_names


def test_titles_and_axes_are_words_and_bars_stay_within_the_range(page: Page) -> None:
    figures = {figure.get_attribute("data-figure"): figure for figure in drawn(page)}
    titles = {name: figure.locator("h3").inner_text() for name, figure in figures.items()}
    assert titles["sparsity-levels"] == "How sparse is each layer?"
    assert titles["sparsity-difference"].endswith(" 5 relative depths")
    assert titles["effects"] == "Where does BatchNorm differ from no normalization?"
    levels = figures["sparsity-levels"].locator(".plot")
    assert levels.locator(".ytitle").text_content() == "share of zero activations"
    ends = levels.evaluate(
        """plot => plot.data.flatMap((trace) => trace.y.flatMap((y, at) =>
          [y - trace.error_y.arrayminus[at], y + trace.error_y.array[at]]))"""
    )
    assert 0 <= min(ends) <= max(ends) <= 1
    loss = figures["loss"].locator(".plot").evaluate("plot => plot.layout.yaxis")
    rows = make_rows(page, "loss")
    assert loss["type"] == "log"
    assert rows
    assert all(math.log10(row[2]) < loss["range"][1] for row in rows.values() if row[0] > 0)


def test_figures_say_which_filters_they_do_not_follow(page: Page) -> None:
    drawn(page)
    note = page.locator("[data-figure=sparsity-difference] .unfiltered")
    expect(note).to_be_hidden()
    page.locator("#filters select[data-choice=epoch]").select_option("1")
    drawn(page)
    expect(note).to_have_text("Not filtered by epoch of means and points.")
    expect(page.locator("#filters select.active")).to_have_count(1)
    expect(page.locator("[data-figure=sparsity-levels] .unfiltered")).to_be_hidden()
    page.get_by_role("button", name="Reset").click()
    drawn(page)
    expect(note).to_be_hidden()


def test_the_verdict_unfolds_on_paper(page: Page) -> None:
    details = page.locator("details.verdict")
    assert details.get_attribute("open") is None
    expect(page.locator("section.card")).to_have_count(1)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert details.get_attribute("open") is not None
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert details.get_attribute("open") is None


def test_each_filter_changes_what_is_shown(page: Page, complaints: list[str]) -> None:
    before = captions(page)
    for choice in ("axis0", "axis1", "epoch", "split", "layer"):
        control = page.locator(f"#filters select[data-choice={choice}]")
        values = [option.get_attribute("value") for option in control.locator("option").all()]
        control.select_option(next(value for value in values if value != control.input_value()))
        assert captions(page) != before, choice
        page.get_by_role("button", name="Reset").click()
        assert captions(page) == before, choice
    assert complaints == []


def test_embeddings_are_of_the_chosen_layer_and_of_a_pair(page: Page) -> None:
    first = captions(page)["embeddings"]
    assert first.startswith("PCA of block02, test split, epoch 2, seed 0. Runs: ")
    assert re.findall(r"(\w+)-depth(\d)", first) == [("none", "2"), ("batchnorm", "2")]
    page.locator("#filters select[data-choice=axis0]").select_option("4")
    of_depth = captions(page)["embeddings"]
    assert of_depth.startswith("PCA of block04, test split")
    assert re.findall(r"(\w+)-depth(\d)", of_depth) == [("none", "4"), ("batchnorm", "4")]
    page.locator("select[data-choice=embedding_layer]").select_option("classifier.features")
    assert "PCA of classifier.features" in captions(page)["embeddings"]
    figure = page.locator("figure[data-figure=embeddings]")
    expect(figure.locator(".scatterlayer .trace")).to_have_count(2 * 10)
    figure.locator("summary").click()
    shown = figure.locator("tbody td:nth-child(4)")
    expect(shown).to_have_count(2 * 10)
    assert sum(map(int, shown.all_inner_texts())) == 2 * 100


def make_rows(page: Page, name: str) -> dict[str, list[float]]:
    """The numbers of a figure, by layer, of those after its name and norm."""
    figure = page.locator(f"figure[data-figure={name}]")
    figure.scroll_into_view_if_needed()
    if figure.locator("details").get_attribute("open") is None:
        figure.locator("summary").click()
    expect(figure).to_have_attribute("aria-busy", "false")
    figure.locator("tbody tr").first.wait_for()  # the table is filled after it is opened
    return {
        row.locator("td").nth(1).inner_text(): [
            float(cell.get_attribute("data-value") or "nan") for cell in row.locator("td").all()[2:]
        ]
        for row in figure.locator("tbody tr").all()
    }


def test_of_one_depth_its_own_layers_are_shown(
    browser: Browser, studies: Studies, complaints: list[str]
) -> None:
    for seed, depth in itertools.product(range(3), (2, 4)):
        for norm in ("none", "batchnorm"):
            values = [0.1 * seed + 0.1 * layer for layer in range(depth)]
            values[3:] = [value - 0.4 * (norm == "batchnorm") for value in values[3:]]
            layers = {"unit_sparsity": values, ("unit_sparsity", 0): values}
            studies.add(norm, seed, f"model.depth={depth}", layers=layers, accuracy=seed / 10)
    write_page(studies.folder)
    page = opened(browser, studies.folder / "report", complaints)
    across = {place: row[0:3:2] for place, row in make_rows(page, "sparsity-difference").items()}
    assert list(across) == [f"depth {share} %" for share in (0, 25, 50, 75, 100)]
    assert across["depth 100 %"] == pytest.approx([6, -0.2])
    assert across["depth 0 %"] == pytest.approx([6, 0])
    caption = captions(page)["epochs-difference"]
    assert (
        "at depth 100 % to no normalization, train split. Lines are means over all pairs" in caption
    )

    page.locator("#filters select[data-choice=axis0]").select_option("4")
    of_depth = {place: row[0:3:2] for place, row in make_rows(page, "sparsity-difference").items()}
    assert list(of_depth) == [f"block0{layer}" for layer in (1, 2, 3, 4)]
    assert of_depth["block04"] == pytest.approx([3, -0.4])
    assert of_depth["block03"] == pytest.approx([3, 0])
    page.locator("#filters select[data-choice=layer]").select_option("block04")
    caption = captions(page)["epochs-difference"]
    assert (
        "at block04 to no normalization, train split. Lines are means over all pairs of networks"
        in caption
    )

    page.locator("#filters select[data-choice=axis0]").select_option("2")
    assert list(make_rows(page, "sparsity-levels")) == ["block01", "block02"]
    page.get_by_role("button", name="Reset").click()
    assert list(make_rows(page, "sparsity-levels")) == list(across)
    assert complaints == []


def test_fewer_runs_are_shown_of_one_depth(page: Page) -> None:
    assert "8 of 8 runs shown" in page.locator("#shown").inner_text()
    page.locator("#filters select[data-choice=axis0]").select_option("2")
    assert "4 of 8 runs shown, depth 2" in page.locator("#shown").inner_text()
    gap = page.locator("figure[data-figure=gap]")
    gap.scroll_into_view_if_needed()  # drawing moves what is below
    expect(gap).to_have_attribute("aria-busy", "false")
    gap.locator("summary").click()
    expect(gap.locator("tbody tr")).to_have_count(4)


def test_the_themes_differ_and_work(page: Page, tmp_path: Path, complaints: list[str]) -> None:
    colours = {}
    for theme in ("light", "dark"):
        page.locator("#theme").select_option(theme)
        drawn(page)
        script = "getComputedStyle(document.body).backgroundColor"
        colours[theme] = page.evaluate(script)
        page.screenshot(path=tmp_path / f"{theme}.png", full_page=True)
    assert colours["light"] != colours["dark"]
    assert complaints == []


def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Browser, folder: Path, complaints: list[str], tmp_path: Path
) -> None:
    page = opened(browser, folder, complaints, width=375)
    drawn(page)
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert complaints == []


def test_the_keyboard_leads_to_the_numbers_which_are_the_tables(page: Page, folder: Path) -> None:
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the results"
    figure = page.locator("figure[data-figure=sparsity-difference]")
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    effects = pd.read_csv(folder / "tables" / "effects.csv")
    whole = effects[effects["depth"].isna() & effects["lr"].isna() & (effects["split"] == "train")]
    metric = page.locator("select[data-choice=sparsity]").input_value()
    expected = whole[whole["metric"] == metric].set_index("place")["difference"]
    rows = figure.locator("tbody tr")
    expect(rows).to_have_count(len(expected))
    for row in rows.all():
        place, shown = row.locator("td").nth(1), row.locator("td").nth(4)
        value = float(shown.get_attribute("data-value") or "nan")
        assert value == pytest.approx(expected[place.inner_text()], rel=1e-5)


def test_means_of_survivors_are_described_as_such(
    browser: Browser, studies: Studies, complaints: list[str]
) -> None:
    for seed in range(4):
        studies.add("batchnorm", seed, layers={"silhouette": [0.1]})
        value, status = (0.2, "completed") if seed == 0 else (math.nan, "diverged")
        studies.add("none", seed, layers={"silhouette": [value]}, status=status)
    write_page(studies.folder)
    found = captions(opened(browser, studies.folder / "report", complaints))
    assert "4 runs each (3 of no normalization diverged)" in found["clustering-levels"]
    assert (
        "At the point with the fewest values: 1 of 4 with no normalization"
        in found["clustering-levels"]
    )
    assert "An exact test needs at least 6 pairs, 5 more" in found["clustering-difference"]
    assert complaints == []


def test_differences_over_the_grid_are_those_within_pairs(
    browser: Browser, studies: Studies, complaints: list[str]
) -> None:
    for depth, width, seed in itertools.product((2, 4), (4, 8), range(2)):
        words = (f"model.depth={depth}", f"model.width={width}")
        studies.add("batchnorm", seed, *words, layers={"silhouette": [0.1]}, accuracy=0.6 + seed)
        if (depth, width, seed) != (2, 4, 1):  # whose partner has none
            studies.add("none", seed, *words, layers={"silhouette": [0.1]}, accuracy=0.5 + seed)
    write_page(studies.folder)
    page = opened(browser, studies.folder / "report", complaints)
    page.locator("select[data-choice=over_grid]").select_option("-1")
    drawn(page)
    figure = page.locator("figure[data-figure=depth-width]")
    figure.locator("summary").click()
    values = figure.locator("tbody td:last-child")
    expect(values).to_have_count(4)
    assert [float(text) for text in values.all_inner_texts()] == pytest.approx([0.1] * 4, rel=1e-3)
    assert figure.locator("tbody td:nth-child(3)").all_inner_texts() == ["1", "2", "2", "2"]
    assert complaints == []


def test_larger_values_are_red_in_every_figure_of_differences(
    browser: Browser, studies: Studies, complaints: list[str]
) -> None:
    for seed, norm, depth, width in itertools.product(
        range(2), ("none", "batchnorm"), (2, 4), (2, 4)
    ):
        value = 0.1 * seed + (norm == "batchnorm")
        words = (f"model.depth={depth}", f"model.width={width}")
        layers = {"davies_bouldin": [value], "silhouette": [value]}
        directions = {"davies_bouldin": "lower", "silhouette": "higher"}
        studies.add(norm, seed, *words, layers=layers, accuracy=value / 2, metrics=directions)
    write_page(studies.folder)
    page = opened(browser, studies.folder / "report", complaints)
    page.locator("select[data-choice=over_grid]").select_option("-1")
    assert "Red means larger with BatchNorm, blue smaller." in str(captions(page)["effects"])
    for name in ("effects", "depth-width"):
        plot = page.locator(f"figure[data-figure={name}] .plot")
        colours, values = plot.evaluate("({ data: [map] }) => [map.colorscale, map.z.flat()]")
        assert colours == [[0, "#2166ac"], [0.5, "#f4f4f4"], [1, "#b2182b"]]
        assert min(values) > 0
    assert complaints == []


def test_a_name_with_markup_is_shown_and_does_nothing(
    browser: Browser, studies: Studies, complaints: list[str]
) -> None:
    studies.folder = studies.folder.with_name(MARKUP)
    for seed in range(3):
        for norm in ("none", "batchnorm"):
            layers = {(MARKUP, 0): [0.0, 0.0], (MARKUP, 5): [seed, 1.0]}
            layers[("silhouette", 5)] = [seed / 10, 0.5]
            dead = {"x": None, "y": None, "share": None, "reason": MARKUP} if norm == "none" else {}
            keep_map(studies.add(norm, seed, layers=layers), 2, seed, **dead)
    write_page(studies.folder)
    page = opened(browser, studies.folder / "report", complaints)
    drawn(page)
    assert page.locator("h1").inner_text() == MARKUP
    page.locator("select[data-choice=metric]").select_option(MARKUP)
    assert MARKUP in captions(page)["epochs-levels"]
    figure = page.locator("figure[data-figure=embeddings]")
    assert CLASSES[1] in figure.locator(".legend").text_content()
    figure.locator("summary").click()
    assert CLASSES[1] in figure.locator("tbody").inner_text()
    assert complaints == []
    assert page.locator("img[src=x]").count() == 0
