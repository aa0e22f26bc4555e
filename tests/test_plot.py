"""What is drawn, read from matplotlib's figures."""
import json
from pathlib import Path

import pytest
from matplotlib.text import Text

import plot
from tests.conftest import ROOT
from tests.test_report import ARMS, write_active, write_dart, write_run

# Each rarer than the one before.
RULES = ("copy", "false equation", "echo", "padding", "too short", "repetition")


def live_dart(path, steps=12, lift=0.0, **args) -> Path:
    """A run of dart.py that goes on: every row of metrics.jsonl that it may write."""
    path.mkdir()
    (path / "args.json").write_text(json.dumps({"rl_steps": 100, "penalty": True} | args))
    rows = [{"step": "1_own.jsonl", "seconds": 3.0}]
    for step in range(steps):
        rows.append({"time": 1.0, "grpo": "mapper", "step": step, "reward": 0.5 + 0.03 * step + lift,
                     "is_right": 0.6 + 0.02 * step, "align": 0.9, "kl": 0.01 * step if step else None,
                     "entropy": 0.8 - 0.03 * step, "length": 120.0 - step, "cut_off": 0.05, "grad_norm": 1.5,
                     "sampler_gap": 0.002, "signal": 0.75, "fails": {"too short": 0.02, "repetition": 0.01},
                     "cheats": {rule: 0.4 / 2 ** i for i, rule in enumerate(RULES[:4])}, "generated": 1000,
                     "scored": 900, "seconds": 2.0})
        if step % 5 == 0:
            rows[-1]["held_out"] = 0.6 + 0.01 * step
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def panels(figure) -> dict:
    """y label -> {name: line}"""
    return {axis.get_ylabel(): {line.get_label(): line for line in axis.lines} for axis in figure.axes}


def names(axis) -> list[str]:
    return [text.get_text().strip() for text in axis.texts]


def run_main(monkeypatch, *argv) -> int:
    monkeypatch.setattr("sys.argv", ["plot.py", *map(str, argv)])
    return plot.main()


def test_a_live_dart_run(tmp_path):
    figure = plot.draw([live_dart(tmp_path / "run")])["dart_mapper"]
    found = panels(figure)
    assert set(found) == {words for _, words, _ in plot.STEPS} | {"dart: a rule fires (%)"}
    reward = found["mean reward"]["dart"]
    assert list(reward.get_ydata()) == pytest.approx([0.5 + 0.03 * i for i in range(12)])
    assert list(found["KL to the base (nats a token)"]["dart"].get_xdata()) == list(range(1, 12))  # null at 0
    assert list(found["mean reward, held out"]["dart"].get_xdata()) == [0, 5, 10]
    rules = figure.axes[-1]
    assert {line.get_label() for line in rules.lines} == set(RULES[:5]) and "repetition" in rules.get_title()
    assert "1 run" in figure.get_suptitle()


def test_the_later_row_of_a_step_counts_and_a_torn_line_does_not(tmp_path):
    file = live_dart(tmp_path / "run", steps=4) / "metrics.jsonl"
    more = ['{"grpo": "map{"grpo": "mapper"}', '{"grpo": "mapper", "step": 2, "reward": 0.1}', '{"grpo": "ma']
    file.write_text(file.read_text() + "\n".join(more))
    line = panels(plot.draw([tmp_path / "run"])["dart_mapper"])["mean reward"]["dart"]
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([0.5, 0.53, 0.1, 0.59])


def test_the_band_of_two_runs_by_hand(tmp_path):
    runs = [live_dart(tmp_path / "a", steps=3), live_dart(tmp_path / "b", steps=2, lift=0.2)]
    figure = plot.draw(runs)["dart_mapper"]
    axis = figure.axes[0]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([0.6, 0.63])  # the steps that both have
    corners = {tuple(corner.round(6)) for corner in axis.collections[0].get_paths()[0].vertices}
    assert corners == {(0, 0.5), (0, 0.7), (1, 0.53), (1, 0.73)}
    assert "2 runs" in figure.get_suptitle() and "smallest to largest" in figure.get_suptitle()


def test_every_line_has_its_name_at_its_end_and_no_two_names_meet():
    for name in ("toy_dart", "toy_active"):
        for figure in plot.draw([ROOT / "results" / f"{name}.json"]).values():
            figure.draw_without_rendering()
            for axis in figure.axes:
                lines = {line.get_label(): line for line in axis.lines}
                assert 1 <= len(lines) <= 5 and sorted(names(axis)) == sorted(lines)
                for text in axis.texts:
                    x, y = (lines[text.get_text()].get_data()[i][-1] for i in (0, 1))
                    assert text.xy == (x, y) and text.get_color() == lines[text.get_text()].get_color()
                boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the line to its end
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [axis.get_title() for axis in figure.axes] == ["not drawn: static_loss; true_loss; badge"] * 4


def test_an_arm_has_one_colour(tmp_path):
    results = plot.draw([ROOT / "results" / "toy_dart.json"])
    assert {"dart_mapper", "dart_grpo", "dart_tokens"} == set(results)
    of_live = panels(plot.draw([live_dart(tmp_path / "run")])["dart_mapper"])["mean reward"]["dart"]
    colours = {axis[arm].get_color() for figure in results.values() for axis in panels(figure).values()
               for arm in axis if arm == "dart"}
    assert colours == {of_live.get_color()} == {plot.colour("stat")}
    assert plot.colour("an arm of mine") == plot.colour("an arm of mine") != plot.colour("dart")


def test_direct_grpos_way_against_tokens_by_hand(tmp_path):
    arms = {"base": [4, 4, 9], "grpo": [8, 4, 7], "dart": [7, 6, 9]}
    paths = [Path(write_dart(tmp_path / str(seed), seed, arms, curve=2)) for seed in (0, 1)]
    for path in paths:
        row = {"set": "d", "is_right": True, "cut_off": False}
        (path / "5_test_grpo_1.jsonl").write_text(json.dumps(row) + "\n")
    line = panels(plot.draw(paths)["dart_tokens"])["right in distribution (%)"]["grpo"]
    assert list(line.get_xdata()) == pytest.approx([0, 0.05, 0.1])
    assert list(line.get_ydata()) == [40, 100, 80]


def test_the_active_loop_finished_and_live(tmp_path):
    done = Path(write_active(tmp_path / "done", 0, "loss", [50, 56, 60]))
    live = Path(write_active(tmp_path / "live", 0, "random", [50, 52], per_round=9))
    for name in ("result.json", "r1_items.json"):
        (live / name).unlink()
    for t, n_right in enumerate((50, 52)):
        rows = [{"id": i, "is_right": i < n_right, "cut_off": False} for i in range(100)]
        (live / f"r{t}_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (live / "r0_selected.json").write_text(json.dumps({"tokens": [30, 10]}))
    made = {"rows": [{"dropped": None}] * 9 + [{"dropped": "x"}], "tokens": [60, 50]}
    (live / "r0_items.json").write_text(json.dumps(made))
    (live / "train_r1.jsonl").write_text('{"messages": []}\n')
    items, tokens = plot.draw([done, live])["active_curve"].axes
    of = {line.get_label(): line for line in items.lines}
    assert items.get_ylabel() == "mathematics: right (%)"
    assert list(of["loss"].get_xdata()) == [0, 10, 20] and list(of["loss"].get_ydata()) == [50, 56, 60]
    assert list(of["random"].get_xdata()) == [0, 9] and list(of["random"].get_ydata()) == [50, 52]
    assert list(tokens.lines[1].get_xdata()) == pytest.approx([0, 0.15])
    by_sum = Path(write_active(tmp_path / "sum", 0, "loss", [50, 54, 58], norm="sum"))
    drawn = plot.draw([done, by_sum])["active_curve"].axes[0]  # two arms, not the mean of the two
    of = {line.get_label(): line for line in drawn.lines}
    assert list(of["loss"].get_ydata()) == [50, 56, 60] and list(of["loss, sum"].get_ydata()) == [50, 54, 58]


def test_stats_bars(tmp_path):
    drawn = plot.draw([Path(write_run(tmp_path / str(seed), seed, arms=ARMS)) for seed in (1, 2)])
    assert set(drawn) == {"stat_sel_profile", "stat_sel_skills"}
    axis = drawn["stat_sel_profile"].axes[0]
    assert len(axis.get_yticklabels()) == 10 and {"missed", "stat", "augment"} <= set(names(axis))
    assert len(names(axis)) <= 5 and "not drawn: " in axis.get_title()
    missed = next(bars for bars in axis.containers if bars.get_label() == "missed")
    assert [bar.get_width() for bar in missed][:2] == pytest.approx([500 / 47, 500 / 47])


def test_pictures_are_written_and_small(tmp_path, monkeypatch, capsys):
    assert run_main(monkeypatch, live_dart(tmp_path / "run"), "--out", tmp_path / "png") == 0
    file = tmp_path / "png" / "dart_mapper.png"
    assert str(file) in capsys.readouterr().out and 10_000 < file.stat().st_size < 150_000


@pytest.mark.parametrize("what, words", [
    ("none", "expected a run's directory"), ("empty", "nothing to draw"), ("none.json", "expected JSON"),
    (ROOT / "results" / "scorer.json", "expected a file that report.py --save wrote")])
def test_a_mistake_gets_one_sentence(what, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    assert run_main(monkeypatch, tmp_path / what, "--out", tmp_path / "png") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and words in told and told.count("\n") == 1
    assert not (tmp_path / "png").exists()


def test_runs_of_two_methods_are_refused(tmp_path, monkeypatch, capsys):
    one, two = live_dart(tmp_path / "a"), write_run(tmp_path / "b")
    assert run_main(monkeypatch, one, two) == 2 and "one method at a time" in capsys.readouterr().err
