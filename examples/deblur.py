"""Deblur a photograph from Python: posterior draws, their mean and their uncertainty.

    python examples/deblur.py

Blurs the bundled photograph, adds noise, draws from the posterior and saves the draws.
"""

from __future__ import annotations

from pathlib import Path

import posterior
from posterior import operators
from posterior.images import read_image


def main(n: int = 2, steps: int = 50, out: str = "out/deblur") -> None:
    """One measurement, n draws."""
    photograph = Path(posterior.__file__).parent / "assets" / "demo.png"
    x = read_image(photograph)[0][None]  # (1, 3, H, W) in [-1, 1]
    blur = operators.GaussianBlur(sigma=2.0)
    y = posterior.GaussianNoise(0.04).sample(blur(x), seed=0)

    prior = posterior.load_prior("photo")
    draws = posterior.sample(prior, blur, y, noise=0.04, n=n, steps=steps, seed=0)
    print(draws.report)
    draws.save(out, overwrite=True)


if __name__ == "__main__":
    main()
