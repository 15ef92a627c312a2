"""The report's files and table say exactly what the dictionary says, fetch nothing and run nothing."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from serve.rendering import print_table
from serve.report import write_report

WIDTH = 16
ANSWER = [
    "She buys 3 packs",
    " of 12 pencils, so she",
    " has 3 * 12",
    " = 36 pencils.",
    " She gives away 9,",
    " and 27 are left.",
]


def made_up_task(*, decay: float, speedup: float, exact: int = 24) -> dict[str, Any]:
    """A task whose conditional acceptance starts at `decay` and sinks a little with every slot."""
    acceptance: list[float | None] = [decay * 0.985**slot for slot in range(WIDTH - 1)]
    survival = []
    alive = 1.0
    for chance in acceptance:
        alive *= chance or 0.0
        survival.append(alive)
    acceptance[-1] = None
    ends = [1.0, *survival]
    histogram = [0] + [round(900 * (ends[n] - ends[n + 1])) for n in range(WIDTH - 1)] + [round(900 * ends[-1])]
    tau = sum(n * count for n, count in enumerate(histogram)) / sum(histogram)
    return {
        "prompts": 24,
        "tokens": 2871,
        "tau": tau,
        "tau_interval": [tau - 0.17, tau + 0.21],
        "acceptance": acceptance,
        "survival": survival,
        "accepted_lengths": histogram,
        "plain_ms_per_token": {"median": 20.31, "low": 19.87, "high": 22.44},
        "speculative_ms_per_token": {
            "median": 20.31 / speedup,
            "low": 18.9 / speedup,
            "high": 24.2 / speedup,
        },
        "tau_over_position": [tau + 0.2, tau, None, tau - 0.1],
        "prefill_ms": {"median": 31.0, "low": 29.5, "high": 40.2},
        "tokens_per_step": 1.5,
        "ways": [
            {"drafts": "drafter", "width": 4, "share": 0.75, "tokens_per_step": 2.0},
            {"drafts": "none", "width": 1, "share": 0.25, "tokens_per_step": 1.0},
        ],
        "speedup": speedup,
        "speedup_interval": [speedup - 0.07, speedup + 0.09],
        "exact": exact,
        "mismatches": [{"id": "chat-17", "position": 41, "logit_gap": 0.00031}] * (24 - exact),
        "repetition_rate": 0.125,
        "tau_without_repetition": tau - 0.1,
        "samples": [
            {
                "prompt": "Ada buys 3 packs of 12 pencils and gives 9 away. How many are left?",
                "output": "".join(ANSWER),
                "runs": [4, 6, 5, 4, 6, 6],
                "pieces": ANSWER,
            }
        ],
    }


def made_up_report() -> dict[str, Any]:
    """A report with everything in it; its numbers are invented and say nothing about this project."""
    step = {1: 20.3, 2: 21.9, 4: 23.8, 8: 26.7, 16: 33.9, 32: 62.4}
    expected = {2: (1.60, 1.01), 4: (2.11, 1.10), 8: (2.40, 1.11), 16: (2.45, 1.13), 32: (2.46, 0.71)}
    return {
        "schema": 4,
        "command": "python -m serve eval --target smollm2-135m --drafter exports/wide_block --out runs/x",
        "device": "cpu, 2 cores, made-up processor",
        "revision": "0123abc",
        "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8"},
        "target": "SmolLM2-135M-Instruct (Q4_1, dequantised)",
        "drafter": "exports/wide_block",
        "dtype": "float32",
        "width": WIDTH,
        "asked_width": None,
        "sampling": {"temperature": 0.0, "top_k": None, "top_p": 1.0, "min_p": 0.0},
        "max_new_tokens": 128,
        "peak_memory_bytes": 1_400_000_000,
        "programs": {"compiled": 3, "from_disk": 9},
        "drafter_info": {
            "width": 32,
            "num_layers": 3,
            "parameters": 12_345_678,
            "target_layer_ids": [1, 14, 27],
        },
        "unfinished": [],
        "cost": {
            "plain_ms": 20.3,
            "widths": [
                {
                    "width": width,
                    "draft_ms": 3.1 + 0.12 * width,
                    "verify_ms": milliseconds,
                    "expected_tau": expected[width][0] if width in expected else None,
                    "expected_speedup": expected[width][1] if width in expected else None,
                }
                for width, milliseconds in step.items()
            ],
        },
        "tasks": {
            "word-problems": made_up_task(decay=0.71, speedup=1.34),
            "code": made_up_task(decay=0.66, speedup=1.22),
            "chat": made_up_task(decay=0.47, speedup=0.94, exact=23),
            "rewriting": made_up_task(decay=0.58, speedup=1.11),
            "knowledge": made_up_task(decay=0.52, speedup=1.03),
        },
        "average": {"tau": 2.45, "tokens_per_step": 1.5, "speedup": 1.128, "exact": 119, "prompts": 120},
    }


class TableCells(HTMLParser):
    """The text of every cell of the table with the given id, row by row."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.table = table
        self.inside = False
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.inside = dict(attrs).get("id") == self.table
        elif self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += f" {data.strip()}"


def written(report: dict[str, Any], directory: Path) -> str:
    write_report(report, directory)
    return (directory / "report.html").read_text(encoding="utf-8")


def numbers(cell: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", cell)]


def test_json_equals_the_dictionary(tmp_path: Path):
    report = made_up_report()
    given = copy.deepcopy(report)
    write_report(report, tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new" / "folder" / "report.json").read_text(encoding="utf-8")) == given
    assert report == given


def test_nothing_but_the_files_is_left(tmp_path: Path):
    write_report(made_up_report(), tmp_path)
    write_report(made_up_report(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_page_table_shows_the_dictionarys_numbers(tmp_path: Path):
    report = made_up_report()
    cells = TableCells("tasks")
    cells.feed(written(report, tmp_path))
    header, *rows, average = cells.rows
    assert len(header) == 13
    assert [row[0].strip() for row in rows] == list(report["tasks"])
    for row, task in zip(rows, report["tasks"].values(), strict=True):
        plain, fast = task["plain_ms_per_token"], task["speculative_ms_per_token"]
        expected = [
            [task["prompts"]],
            [task["tokens"]],
            [task["tau"], *task["tau_interval"]],
            [1.5],
            [4, 75, 2, 25, 1],
            [31],
            [plain["median"], plain["low"], plain["high"]],
            [fast["median"], fast["low"], fast["high"]],
            [task["speedup"], *task["speedup_interval"]],
            [task["exact"], task["prompts"]],
        ]
        for cell, values in zip(row[1:11], expected, strict=True):
            assert numbers(cell) == pytest.approx(values, abs=0.0051)
        assert numbers(row[11]) == pytest.approx([100 * task["repetition_rate"]], abs=0.051)
    assert numbers(average[3]) == [2.45]
    assert numbers(average[4]) == [1.5]
    assert numbers(average[9]) == [1.13]
    assert numbers(average[10]) == [119, 120]


def test_markdown_shows_the_same_numbers(tmp_path: Path):
    report = made_up_report()
    write_report(report, tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    task = report["tasks"]["word-problems"]
    assert cells[:2] == ["word-problems", "24"]
    assert numbers(cells[2])[0] == pytest.approx(task["tau"], abs=0.0051)
    assert [numbers(cell)[0] for cell in cells[3:7]] == pytest.approx([1.5, 20.3, 20.31 / 1.34, 1.34], abs=0.051)
    assert cells[7] == "24/24"
    assert numbers(lines[7]) == [2.45, 1.5, 1.13, 119, 120]


def test_terminal_table_shows_the_same_numbers(tmp_path: Path):
    report = made_up_report()
    console = Console(width=160, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    with console.file:
        print_table(report, console, tmp_path)
    lines = console.export_text().splitlines()
    for name, task in report["tasks"].items():
        (line,) = [line for line in lines if f" {name} " in line]
        fast = task["speculative_ms_per_token"]["median"]
        shown = numbers(line.replace(name, ""))
        expected = [
            task["prompts"],
            task["tau"],
            1.5,
            20.31,
            fast,
            task["speedup"],
            task["exact"],
            task["prompts"],
        ]
        assert shown == pytest.approx(expected, abs=0.0051)
    (average,) = [line for line in lines if " average " in line]
    assert numbers(average) == [120, 2.45, 1.5, 1.13, 119, 120]
    assert lines[-1] == f"report: {tmp_path / 'report.html'} and {tmp_path / 'report.json'}"


def test_page_fetches_and_runs_nothing(tmp_path: Path):
    page = written(made_up_report(), tmp_path).lower()
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r"""(?:src|href|xmlns)\s*=""", page) == []
    assert re.findall(r"""url\(|https?://""", page) == []


def test_text_of_models_and_users_is_escaped(tmp_path: Path):
    report = made_up_report()
    attack = "<script>alert('x')</script>&\"'"
    report["command"] = report["device"] = report["drafter"] = attack
    task = report["tasks"]["chat"]
    report["tasks"][attack] = task
    task["samples"] = [{"prompt": attack, "output": attack, "runs": [3], "pieces": [attack]}]
    task["mismatches"] = [{"id": attack, "position": 1, "logit_gap": 0.5}]
    report["drafter_info"] = {attack: attack}
    page = written(report, tmp_path)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_a_report_without_samples_mismatches_or_expectations_is_a_page(tmp_path: Path):
    report = made_up_report()
    for task in report["tasks"].values():
        task.update(samples=[], mismatches=[], exact=24, tau_without_repetition=None)
    for row in report["cost"]["widths"]:
        row.update(expected_tau=None, expected_speedup=None)
    page = written(report, tmp_path)
    assert "Two answers" not in page
    assert 'id="mismatches"' not in page
    assert "none left" in page


def test_an_answer_without_pieces_is_shown_whole(tmp_path: Path):
    report = made_up_report()
    sample = report["tasks"]["word-problems"]["samples"][0]
    del sample["pieces"]
    sample["output"] = "an untinted answer"
    assert "an untinted answer" in written(report, tmp_path)
