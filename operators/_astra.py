"""The matrix of the ASTRA toolbox as a second opinion on that of `_projector`.

ASTRA's CPU kernels "strip" (parallel) and "strip_fanflat" integrate over the width of a bin, as
ours do. W. van Aarle et al., "Fast and flexible X-ray tomography using the ASTRA Toolbox", Optics
Express 24, 2016. The toolbox is licensed under the GPL and brings CUDA's run-time libraries.
"""

from __future__ import annotations

from torch import Tensor

from posterior.errors import CapabilityError
from posterior.operators._projector import from_scipy


def astra_matrix(
    geometry: tuple[object, ...], angles: Tensor, size: tuple[int, int], pixel_size: float
) -> Tensor:
    """The matrix (views * detectors, H * W), sparse by rows, float64.

    Args:
        geometry: for `astra.create_proj_geom`: its kind, bins in pixels, their number, and for
            "fanflat" the distances of source and detector from the centre, in pixels.
        angles: (views,), in radians.
        size: (H, W).
        pixel_size: scales the lengths.

    Raises:
        CapabilityError: the toolbox is not installed.
    """
    try:
        import astra
    except ImportError as error:
        raise CapabilityError(
            f"backend='astra' needs the ASTRA toolbox ({error}): pip install posterior-sampling[ct]"
        ) from None
    kind, *detector = geometry
    kernel = "strip" if kind == "parallel" else f"strip_{kind}"
    bins, distances = detector[:2], detector[2:]
    beams = astra.create_proj_geom(kind, *bins, angles.numpy(), *distances)
    projector = astra.create_projector(kernel, beams, astra.create_vol_geom(*size))
    matrix = astra.projector.matrix(projector)
    try:
        return from_scipy(astra.matrix.get(matrix)) * pixel_size
    finally:
        astra.matrix.delete(matrix)
        astra.projector.delete(projector)
