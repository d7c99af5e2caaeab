"""Tables and figures from results of which every number is known."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from flexvideo.errors import ConfigError
from flexvideo.evaluate import Cell, CellResult, Cost, Result, estimate
from flexvideo.evaluate.facts import ModelFacts, SourceFacts
from flexvideo.evaluate.figures import plot_heat_maps, plot_sizes, plot_tokens
from flexvideo.evaluate.render import FORMATS, comma_separated, latex, markdown
from flexvideo.evaluate.tables import SHAPES, Table

SIZES = (96, 224, 448)
QUERIES = 200


def result(name: str, data: str, values: dict[Cell, float], *, task: str = "retrieval", **changes) -> Result:
    """A result of given top-1 in percent; a better model is right on the same queries and some more."""
    labels = torch.arange(QUERIES) % 4
    order = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(0))
    found = []
    for cell, value in values.items():
        hits = (order < QUERIES * value / 100).double()
        metrics = {"top1": estimate(hits), "balanced": estimate(hits, labels=labels)}
        tokens = 1 + cell.frames * (14 if name == "flexible" else cell.size // 16) ** 2
        cost = Cost(cell.size, cell.size, (16, 16), (14, 14), tokens, tokens / 1000)
        text = "".join("1" if hit else "0" for hit in hits.tolist())
        found.append(CellResult(cell, cost, metrics, text))
    made = Result(
        task=task,
        name=name,
        model=ModelFacts("m.pth", name, 73_800_000, {"name": "static-tokens"}, {"kernel": "auto"}, {}),
        queries=SourceFacts(data, "test", "1", QUERIES, 4, data),
        gallery=None,
        protocol={"views": {"clips": 1}},
        cells=tuple(found),
        labels=tuple(labels.tolist()),
        skipped=(),
        version="0",
        date="2026-01-01",
    )
    return replace(made, **changes)


def grid(rows: dict[int, Sequence[float]]) -> dict[Cell, float]:
    return {Cell(t, r): v for t, line in rows.items() for r, v in zip(SIZES, line, strict=False)}


VANILLA = result("vanilla", "UCF101", grid({8: (65, 90, 86), 16: (67, 92, 88)}))
FLEXIBLE = result("flexible", "UCF101", grid({8: (92, 93, 93), 16: (92, 91.5, 94)}))
LONG = [
    result("vanilla", "Breakfast", grid({16: (22, 42, 33), 64: (23, 43)})),
    result("flexible", "Breakfast", grid({16: (49, 53, 50), 64: (54, 60, 56)})),
]


def test_the_papers_first_table() -> None:
    (table,) = SHAPES["geometry"]([VANILLA, FLEXIBLE, *LONG])
    assert table.columns == ("Data set", "Model", "T", "96 px", "224 px", "448 px", "Avg. Δ")
    assert table.rows == (
        ("UCF101", "vanilla", "8", "65.0", "90.0", "86.0", "-"),
        ("", "flexible", "8", "92.0", "93.0", "93.0", "+12.3"),
        ("", "vanilla", "16", "67.0", "92.0", "88.0", "-"),
        ("", "flexible", "16", "92.0", "91.5", "94.0", "+10.2"),
        ("Breakfast", "vanilla", "16", "22.0", "42.0", "33.0", "-"),
        ("", "flexible", "16", "49.0", "53.0", "50.0", "+18.3"),
        ("", "vanilla", "64", "23.0", "43.0", "-", "-"),
        ("", "flexible", "64", "54.0", "60.0", "56.0", "+24.0"),
    )
    assert {column for row, column in table.best if row == 2} == {4}
    assert {column for row, column in table.best if row == 3} == {3, 5}
    assert {column for row, column in table.best if row == 7} == {3, 4, 5}
    assert table.notes == ("Avg. Δ: points above vanilla, averaged over the sizes that both have.",)


def test_a_model_alone_is_not_called_best() -> None:
    assert not SHAPES["geometry"]([VANILLA])[0].best
    assert not SHAPES["tasks"]([result("a", "UCF101", grid({16: (60,)}))])[0].best


def test_differences_are_paired() -> None:
    (table,) = SHAPES["differences"]([VANILLA, FLEXIBLE])
    assert [row[:3] for row in table.rows] == [("UCF101", "flexible", "8"), ("UCF101", "flexible", "16")]
    value, low, high = (float(part.strip("[],")) for part in table.rows[0][3].split())
    assert value == 27
    gained = torch.zeros(QUERIES)
    gained[:54] = 1  # 27 % of the queries
    assert (low, high) == pytest.approx((21.5, 33), abs=1.5)
    assert table.rows[1][4].startswith("-0.5 [-1.5, +0.0]")
    (balanced,) = SHAPES["differences"]([VANILLA, FLEXIBLE], metric="balanced")
    assert balanced.rows[0][3] != table.rows[0][3]


def test_runs_are_averaged() -> None:
    seeds = [
        result("vanilla", "UCF101", grid({8: (value,)}), model=replace(VANILLA.model, weights=str(value)))
        for value in (60, 62, 64)
    ]
    (table,) = SHAPES["geometry"]([*seeds, result("flexible", "UCF101", grid({8: (70,)}))])
    assert table.rows[0][3] == "62.0 ± 2.0"
    assert table.rows[1][3:] == ("70.0", "+8.0")
    files = ", ".join(seed.filename for seed in seeds)
    assert table.notes[1] == f"vanilla on UCF101: mean ± standard deviation over 3 runs, of {files}."
    elsewhere = result("vanilla", "HMDB51", grid({8: (70,)}), model=replace(VANILLA.model, weights="other"))
    assert SHAPES["geometry"]([*seeds, elsewhere])[0].notes == table.notes[1:]  # nothing averaged on HMDB51
    (gains,) = SHAPES["differences"]([*seeds, result("flexible", "UCF101", grid({8: (70,)}))])
    assert gains.rows[0][3].startswith("+8.0 [")


def test_ways_to_run_a_model_are_not_averaged() -> None:
    one, other = (
        result(
            "vanilla", "UCF101", grid({8: (60,)}), model=ModelFacts("m", rule, 1, None, {"kernel": rule}, {})
        )
        for rule in ("paper", "auto")
    )
    says = (
        r"'vanilla' for retrieval on UCF101 were run in different ways at 8x96, .*'paper'.*'auto'.* give each"
    )
    with pytest.raises(ConfigError, match=says):
        SHAPES["geometry"]([one, other])
    assert SHAPES["geometry"]([one, replace(other, name="auto")])


def test_other_galleries_do_not_compare() -> None:
    galleries = [SourceFacts("UCF101", "train", "1", count, 4, str(count)) for count in (9537, 500)]
    results = [replace(VANILLA, gallery=galleries[0]), replace(FLEXIBLE, gallery=galleries[1])]
    with pytest.raises(ConfigError, match=r"searched or learnt from other clips \(9,537 and 500\)"):
        SHAPES["geometry"](results)
    fewer = replace(FLEXIBLE, gallery=galleries[0], skipped=("a.mp4: cannot be read",))
    with pytest.raises(ConfigError, match=r"searched or learnt from other clips \(9,537 and 9,536\)"):
        SHAPES["geometry"]([results[0], fewer])


def test_gains_are_above_the_first_model_or_none() -> None:
    results = [
        VANILLA,
        *(result(name, "COIN", grid({8: (value,)})) for name, value in (("b", 50), ("c", 60))),
    ]
    (table,) = SHAPES["geometry"](results)
    assert [row[-1] for row in table.rows] == ["-"] * 4


def test_parts_of_a_grid_come_together() -> None:
    parts = [replace(VANILLA, cells=VANILLA.cells[:2]), replace(VANILLA, cells=VANILLA.cells[2:])]
    assert SHAPES["geometry"](parts) == SHAPES["geometry"]([VANILLA])


def test_the_papers_second_table() -> None:
    usual = Cell(16, 224)
    results = [
        result(name, data, {usual: value}, task=task)
        for task, data, one, other in (("finetune", "UCF101", 95.5, 96.5), ("probe", "COIN", 75.5, 80.5))
        for name, value in (("VideoMamba", one), ("Ours", other))
    ]
    (table,) = SHAPES["tasks"](results)
    assert table.columns == ("Model", "Full fine-tuning: UCF101", "Linear probing: COIN")
    assert table.rows == (("VideoMamba", "95.5", "75.5"), ("Ours", "96.5 (+1.0)", "80.5 (+5.0)"))
    assert table.best == {(1, 1), (1, 2)}
    assert table.title == "top1 in % at 16x224 (frames x pixels)"
    with pytest.raises(
        ConfigError, match="The results of retrieval on Breakfast have 3 cells and 16x224 is not"
    ):
        SHAPES["tasks"]([result("vanilla", "Breakfast", grid({64: (22, 42, 33)}))])


def test_the_papers_third_table() -> None:
    (table,) = SHAPES["models"]([VANILLA, FLEXIBLE, *LONG])
    assert table.columns == ("Model", "Parameters", "UCF101", "Breakfast", "Average")
    assert table.rows == (
        ("vanilla", "73.8 M", "92.0 (16x224)", "43.0 (64x224)", "67.5"),
        ("flexible", "73.8 M", "94.0 (16x448)", "60.0 (64x224)", "77.0"),
    )
    assert table.best == {(1, 2), (1, 3)}
    assert "chosen on the queries themselves" in table.notes[0]


def test_costs_and_cells() -> None:
    (table,) = SHAPES["costs"]([VANILLA, FLEXIBLE])
    assert table.rows[0] == ("vanilla", "8", "289 / 0.3", "1,569 / 1.6", "6,273 / 6.3")
    assert table.rows[2] == ("flexible", "8", "1,569 / 1.6", "1,569 / 1.6", "1,569 / 1.6")
    (table,) = SHAPES["cells"]([VANILLA, *LONG])
    rows = list(csv.DictReader(comma_separated(table).splitlines()))
    assert len(rows) == 2 * (6 + 5 + 6)
    assert rows[0]["value"] == "0.650000"
    assert (rows[0]["frames"], rows[0]["size"], rows[0]["tokens"], rows[0]["gflops"]) == (
        "8",
        "96",
        "289",
        "0.289",
    )


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_every_shape_in_every_format(shape: str, format_: str) -> None:
    for table in SHAPES[shape]([VANILLA, FLEXIBLE]):
        assert all(len(row) == len(table.columns) for row in table.rows)
        text = FORMATS[format_](table)
        assert "65.0" in text or shape in ("differences", "costs", "models", "tasks", "cells")


def test_markdown_is_lined_up() -> None:
    (table,) = SHAPES["geometry"]([VANILLA, FLEXIBLE])
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "**92.0**" in lines[3]


def test_latex_escapes_and_separates() -> None:
    (table,) = SHAPES["geometry"]([replace(VANILLA, name="a_b & 5 %"), FLEXIBLE, *LONG])
    text = latex(table)
    assert r"a\_b \& 5 \%" in text
    assert r"\textbf{92.0}" in text
    assert text.count(r"\midrule") == 2
    assert text.count(r"\\") == 1 + len(table.rows)


def test_csv_says_in_every_row_what_it_belongs_to() -> None:
    (table,) = SHAPES["geometry"]([VANILLA, FLEXIBLE])
    rows = list(csv.DictReader(comma_separated(table).splitlines()))
    assert {row["Data set"] for row in rows} == {"UCF101"}


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([], "A table needs at least one result"),
        (
            [VANILLA, VANILLA],
            "Two results of 'vanilla' for retrieval on UCF101 have the same weights at 8x96",
        ),
        (
            [VANILLA, replace(FLEXIBLE, protocol={"views": {"clips": 10}})],
            r"'flexible' for retrieval on UCF101 differ in views: clips \(1 and 10\), so they cannot stand "
            r"in one table: give either retrieval-UCF101-vanilla-\w+\.json or retrieval-UCF101-flexible-\w+",
        ),
        (
            [VANILLA, replace(FLEXIBLE, labels=(0, 1))],
            r"were measured on other clips \(200 of test and 2 of test\)",
        ),
    ],
)
def test_what_cannot_stand_in_one_table(results: list[Result], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SHAPES["geometry"](results)


def test_metrics_that_are_not_there() -> None:
    with pytest.raises(
        ConfigError, match="'vanilla' has no metric 'mAP' for retrieval on UCF101; it has: top1, ba"
    ):
        SHAPES["geometry"]([VANILLA], metric="mAP")
    with pytest.raises(ConfigError, match="There is a single model, 'vanilla'"):
        SHAPES["differences"]([VANILLA])


@pytest.mark.parametrize("draw", [plot_sizes, plot_tokens, plot_heat_maps])
def test_figures(draw: Callable, tmp_path: Path) -> None:
    path = draw([VANILLA, FLEXIBLE, *LONG], tmp_path / "figure.png")
    assert path.stat().st_size > 10_000
    draw([VANILLA], tmp_path / "one.pdf")
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("draw", [plot_sizes, plot_tokens])
def test_nothing_of_a_figure_is_cut_off_or_overlaps(draw, tmp_path, monkeypatch) -> None:
    def check(figure: Figure, *_: object, **__: object) -> None:
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.x1
        figures.append(figure)

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", check)
    names = ("videomamba_m16_k400_mask_ft_f16_res224 static-patch", "my_own_run static-tokens", "native")
    values = grid({8: (60, 70, 80), 16: (61, 71, 81), 32: (62, 72, 82)})
    draw([result(name, "UCF101", values) for name in names], tmp_path / "a.png")
    axes = figures[0].axes[0]
    places = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(places) > 2
    assert all(one.x1 < other.x0 for one, other in pairwise(places))
    assert not any("mathdefault" in label.get_text() for label in axes.get_xticklabels(which="both"))


def test_a_table_without_a_best() -> None:
    assert markdown(Table("t", ("a", "b"), (("x", "1"),), notes=("A note.",))).endswith("|\n\nA note.")
