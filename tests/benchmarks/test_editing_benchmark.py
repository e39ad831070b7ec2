"""The benchmark of editing: its scores where the truth is known, and a run with tiny networks."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import posterior

with pytest.MonkeyPatch.context() as path:
    for folder in ("benchmarks", "examples"):
        path.syspath_prepend(str(Path(__file__).parents[2] / folder))
    import editing as benchmark
    import train_shapes_model as script
    from shapes import networks, world


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with random weights, written as the training writes it."""
    torch.manual_seed(0)
    words, sizes = networks.tokenizer(), networks.TINY
    parts = networks.codec(sizes), networks.text_encoder(sizes, words), words, networks.unet(sizes)
    folder = tmp_path_factory.mktemp("shapes") / "stable-diffusion"
    script.write_pipeline(networks.pipeline(*parts), folder)
    return folder


def test_the_truth_shows_every_edit_and_the_source_none() -> None:
    items = benchmark.drawn(world.EDITS, 3)
    truth = [benchmark.score(i, world.draw(i.truth.target)[None]) for i in items]
    source = [benchmark.score(i, i.picture) for i in items]
    # the checker reads one attribute in a hundred wrong, and an edit has ten or so
    assert statistics.fmean(s["shown"] for s in truth) >= 0.9
    assert statistics.fmean(s["shown"] for s in source) <= 0.1
    assert min(statistics.fmean(s["kept"] for s in scores) for scores in (truth, source)) >= 0.95
    assert all(s["psnr"] is None for s in truth if "psnr" in s), "equal outside of the region"
    assert all(s["distance"] == s["structure"] == 0 for s in source)
    assert all(t["structure"] > 0 for t, i in zip(truth, items, strict=True) if i.kind != "colour")


def test_facts_go_to_the_nearest_object() -> None:
    red, blue = world.Kind("circle", "red"), world.Kind("star", "blue", "small", "dotted")
    here, there = world.Spot(15, 30, 10), world.Spot(50, 32, 9)
    said = benchmark.facts(
        world.Ground("grey"), "flat", [(blue, there), (red, here)], [here, there]
    )
    assert (said["colour 0"], said["shape 1"], said["texture 1"]) == ("red", "star", "dotted")
    assert (said["place 0"], said["place 1"]) == ("left", "right")
    alone = benchmark.facts(world.Ground("grey"), "flat", [(blue, there)], [here, there])
    assert alone["objects"] == 1
    assert "colour 0" not in alone, "the only object is the second one"


def test_scores_outside_do_not_see_the_region() -> None:
    (item,) = benchmark.drawn(["colour"], 1)
    outside = ~item.region
    painted = torch.where(outside, item.picture, -1.0)
    assert benchmark.score(item, painted)["psnr"] is None
    assert benchmark.score(item, painted)["ssim"] == pytest.approx(1)
    moved = torch.where(outside, item.picture + 0.02, item.picture).clamp(-1, 1)
    error = ((moved - item.picture) / 2)[..., outside].square().mean()
    assert benchmark.score(item, moved)["psnr"] == pytest.approx(float(-10 * error.log10()))


def test_a_run_fills_all_cells_once_and_shows_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    told = ["--model", str(model), "--edits", "1", "--kinds", "colour", "style", "--steps", "2",
            "--out", str(tmp_path / "out.jsonl"), "--pictures", str(tmp_path)]  # fmt: skip
    strong = {"EDICT": posterior.guidance.EDICT(strength=1.0),
              "BDIA": posterior.guidance.BDIA(strength=1.0)}  # fmt: skip
    monkeypatch.setattr(benchmark, "METHODS", {**benchmark.METHODS, **strong})
    benchmark.main(told)
    shown = capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    masked = sum("mask given" in name for name in benchmark.METHODS)
    assert len(records) == 2 * (len(benchmark.METHODS) + 2) - masked, "a style keeps nothing"
    for name, method in benchmark.METHODS.items():
        assert f"| {name} |" in shown
        calls = [r["scores"]["calls"] for r in records if r["method"] == name]
        # a call under guidance is two; both prompts, one or none are guided
        assert all(method.nfe(2) <= count <= 2 * method.nfe(2) for count in calls)
    assert "| shown, % | colour | style |" in shown
    with Image.open(tmp_path / "stable-diffusion.jpg") as page:
        assert page.width > 128 * (len(benchmark.METHODS) + 3)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("everything is there already")

    monkeypatch.setattr(posterior, "edit", never)
    benchmark.main(told)
    assert capsys.readouterr().out == shown[shown.index("| method |") :]
    with pytest.raises(AssertionError, match="already"):  # another setting is another cell
        benchmark.main([*told, "--scale", "2.0"])


def test_a_model_that_jumps_has_settings_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words, sizes = networks.tokenizer(), networks.TINY
    unet = networks.unet(sizes, time_cond_proj_dim=sizes.scale)
    parts = networks.codec(sizes), networks.text_encoder(sizes, words), words, unet
    folder = tmp_path / "latent-consistency"
    script.write_pipeline(networks.consistency_pipeline(*parts), folder)
    benchmark.main(
        ["--model", str(folder), "--edits", "1", "--kinds", "move", "--steps", "3", "--scale", "4",
         "--source-scale", "2", "--out", str(tmp_path / "out.jsonl"), "--pictures", str(tmp_path)]
    )  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    calls = {r["method"]: r["scores"].get("calls") for r in records}
    scales = {"DDCM": "4 and 2"}  # the only one of them that asks about the source
    wanted = {
        f"{name}, scale {scales.get(name, '4')}": method.nfe(3)
        for name, method in benchmark.JUMPS.items()
    }
    assert calls == {benchmark.NO_EDIT: None, benchmark.TRUTH: None, **wanted}


def test_pie_bench_is_read_as_it_is_published(tmp_path: Path) -> None:
    (tmp_path / "annotation_images/0_random").mkdir(parents=True)
    pixels = np.zeros((16, 16, 3), np.uint8)
    entry = {
        "image_path": "0_random/a.png", "original_prompt": "a [red] cup", "editing_type_id": "6",
        "editing_prompt": "a [blue] cup", "mask": [16 * 3 + 4, 2, 16 * 9 + 15, 3],
    }  # fmt: skip
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"annotation_images/0_random/{name}.png")
    mapping = {"1": entry, "2": {**entry, "image_path": "0_random/b.png"}}
    (tmp_path / "mapping_file.json").write_text(json.dumps(mapping))
    (item,) = benchmark.pie_bench(tmp_path, 1)
    assert (item.source, item.target, item.kind) == ("a red cup", "a blue cup", "6")
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[3, 4:6] = inside[10, :2] = True  # pairs of start and length along the rows
    assert torch.equal(item.region[1:-1, 1:-1], inside[1:-1, 1:-1])
    assert item.region[0].all()
    assert item.region[:, -1].all()
    assert "shown" not in benchmark.score(item, item.picture)


def test_a_missing_model_and_an_unknown_method_are_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="train it with"):
        benchmark.main(["--model", str(tmp_path)])
    with pytest.raises(SystemExit, match="no method 'Photoshop'"):
        benchmark.main(["--model", str(model), "--methods", "Photoshop"])
