"""The bundled photo prior: invariance, resume, sizes, and that it denoises photographs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor

import posterior
from posterior import operators, priors
from posterior.errors import FileProblem, InputError
from posterior.images import read_image
from posterior.metrics import psnr
from posterior.priors.base import Prior
from posterior.priors.photo import compute_dtype
from posterior.streams import normal


@pytest.fixture(scope="module")
def prior() -> Prior:
    """The bundled prior."""
    return posterior.load_prior("photo")


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """The demo photograph, (1, 3, H, W)."""
    return read_image(Path(str(resources.files("posterior") / "assets" / "demo.png")))[0][None]


def test_draws_do_not_depend_on_batch_chunk_or_resume(
    prior: Prior, photograph: Tensor, tmp_path: Path
) -> None:
    x = torch.cat([photograph[..., 40:72, 40:72], photograph[..., 60:92, 20:52]])
    blur = operators.GaussianBlur(sigma=1.5)
    y = posterior.GaussianNoise(0.04).sample(blur(x), seed=0)
    run = {"noise": 0.04, "steps": 3}
    whole = posterior.sample(prior, blur, y, n=4, seed=3, **run)
    assert (whole.provenance["nfe"], whole.provenance["vjp"]) == (3, 9)
    for max_batch in (1, 3, 100):
        again = posterior.sample(prior, blur, y, n=4, seed=3, max_batch=max_batch, **run)
        assert torch.equal(again.draws, whole.draws)
    alone = posterior.sample(prior, blur, y[1:], n=1, seed=4, first_draw=2, **run)
    assert torch.equal(alone.draws[0, 0], whole.draws[2, 1])
    posterior.sample(
        prior, blur, y, n=4, seed=3, checkpoint=tmp_path, callback=lambda s: s.index == 0, **run
    )
    resumed = posterior.sample(prior, blur, y, n=4, seed=3, resume=tmp_path, max_batch=3, **run)
    assert torch.equal(resumed.draws, whole.draws)


def test_unconditional_draws_do_not_depend_on_the_batch(prior: Prior) -> None:
    run = {"shape": (3, 32, 32), "steps": 3}
    whole = posterior.sample(prior, n=3, **run).draws
    assert torch.equal(posterior.sample(prior, n=1, first_draw=2, **run).draws[0], whole[2])
    assert torch.equal(posterior.sample(prior, n=3, max_batch=2, **run).draws, whole)


def test_a_larger_block_of_rows_changes_only_rounding(photograph: Tensor) -> None:
    prior = posterior.load_prior("photo")
    x = torch.cat([photograph[..., :32, :32], photograph[..., -32:, -32:]])
    one = prior(x, 0.5).x0
    prior.rows = 4
    torch.testing.assert_close(prior(x, 0.5).x0, one, atol=0.05, rtol=0.05)  # bfloat16 inside


# noise std of 255 -> PSNR that a plain network reaches; the identity has 24.6, 20.2 and 14.1 dB
@pytest.mark.parametrize(("level", "least"), [(15, 31.0), (25, 28.5), (50, 25.0)])
def test_it_denoises_a_held_out_photograph(
    prior: Prior, photograph: Tensor, level: int, least: float
) -> None:
    sigma = 2 * level / 255
    y = photograph + sigma * normal(0, "test", photograph)
    t = prior.schedule.time_of_ratio(sigma)
    assert float(psnr(prior(y, t).x0, photograph)) > least


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 128)])
def test_any_size_from_32(prior: Prior, size: tuple[int, int]) -> None:
    x = torch.zeros(1, 3, *size)
    assert prior(x, 0.3).x0.shape == x.shape


def test_check_finds_nothing_wrong(prior: Prior, photograph: Tensor) -> None:
    assert priors.check(prior, shape=(3, 32, 32)) == []


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 31, 64), (3, 64), (4, 64, 64)])
def test_wrong_shapes_are_refused_before_the_network_runs(
    prior: Prior, shape: tuple[int, ...]
) -> None:
    before = prior.counts.nfe
    with pytest.raises(InputError, match="photo prior"):
        posterior.sample(prior, shape=shape)
    assert prior.counts.nfe == before


def test_unknown_and_broken_priors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'photo'"):
        posterior.load_prior("foto")
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"not weights")
    with pytest.raises(FileProblem, match="weights of the photo prior"):
        priors.PhotoPrior.load(broken)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, None),
        ({"cpu_name": "AMD Zen4", "avx512_bf16": True}, torch.bfloat16),
        ({"cpu_name": "AMD Zen2", "avx512_bf16": False}, None),
        ({"architecture": "arm64"}, None),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, cpu: dict[str, object], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert compute_dtype(torch.device("cpu")) == expected
    assert compute_dtype(torch.device("cuda")) == torch.bfloat16


def test_a_torch_that_does_not_know_its_cpu_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert compute_dtype(torch.device("cpu")) is None
