"""The command line: `posterior restore`, `edit`, `train-prior`, `methods`, `operators`, `demo`.

It speaks [0, 1] where the library speaks [-1, 1]: `--noise 0.02` is 0.02 of full scale. A command
that cannot be carried out as written ends with code 2 before anything is computed or written; a
file that cannot be restored is reported, the others are finished, and the code is 1.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posterior.errors import FileProblem, InputError, PosteriorError, unknown_name

if TYPE_CHECKING:
    from posterior.editing import Edited
    from posterior.operators import Operator
    from posterior.operators.noise import NoiseModel
    from posterior.restoration import Plan, Restoration

LONG = 600.0  # seconds after which a run wants --yes

_ROOT_HELP = (
    "Restore images with diffusion models: several answers, and how sure they are.\n\n"
    "A blurred, holed, noisy or small photograph does not say exactly what was there before. "
    "This program draws [bold]several[/bold] images that explain it, and maps where they agree. It "
    "edits images in the same way: what must stay is what was seen."
)
_RESTORE_HELP = (
    "Restore degraded images: several draws, their mean, and a map of the uncertainty.\n\n"
    "Each image gets a folder with [bold]sheet.png[/bold] (look at this first), mean.png, std.png "
    "(of several draws), draw-0.png ..., degraded.png, samples.safetensors and report.json.\n\n"
    """\b
[dim]# a blurred photograph; the noise is estimated[/dim]
[cyan]posterior restore photo.jpg --operator gaussian-blur:sigma=2[/cyan]
[dim]# repaint what is white in strokes.png; 2 % noise[/dim]
[cyan]posterior restore photo.png -a inpaint:edit=strokes.png --noise 0.02[/cyan]
[dim]# is it any good? blur a clean image, tear a hole, restore, score[/dim]
[cyan]posterior restore a.png --simulate -a gaussian-blur:sigma=2 -a inpaint:box=24[/cyan]
[dim]# four times the size; many images, a result folder each[/dim]
[cyan]posterior restore small/*.png -a super-resolution:factor=4 -o large[/cyan]
[dim]# slices of a volume, with a prior of one's own; results are NIfTI in the same space[/dim]
[cyan]posterior restore t1.nii.gz --slices 80:84 -a gaussian-blur:sigma=1 \\
    --prior t1.safetensors[/cyan]
"""
)
_TRAIN_HELP = (
    "Train a small prior on a folder of images, on the CPU.\n\n"
    "For images unlike photographs: slices, maps, spectra; grey, RGB or complex. Some hundreds are "
    "enough to begin with. Writes FILE.safetensors for [bold]posterior.load_prior[/bold], and "
    "beside it FILE.draws.png (held-out patches over draws; look at it) and FILE.checkpoint.pt.\n\n"
    """\b
[cyan]posterior train-prior --images slices --out brain.safetensors[/cyan]
[dim]# floats in [0, 1]; all orientations alike; all night[/dim]
[cyan]posterior train-prior --images maps --out maps.safetensors \\
    --range 0,1 --augment turns --minutes 480[/cyan]
"""
)

_EDIT_HELP = (
    "Edit images: variants that show the target and keep the rest of the source.\n\n"
    "MODEL is a folder or name of a diffusers pipeline, or whatever posterior.load_prior takes. "
    "A mask confines the edit: [bold]--edit[/bold] (white = repaint) or [bold]--keep[/bold].\n\n"
    """\b
[cyan]posterior edit cat.png --prior MODEL --source "a cat on a sofa" --target "a dog"[/cyan]
[dim]# repaint what is white in strokes.png, leave every other pixel as it is[/dim]
[cyan]posterior edit cat.png --prior MODEL --target "a hat" --edit strokes.png --paste-back[/cyan]
[dim]# in the style of another image; without a model that reads prompts: --prior photo[/dim]
[cyan]posterior edit cat.png --prior MODEL --reference painting.jpg[/cyan]
"""
)

app = typer.Typer(
    name="posterior",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]posterior demo[/bold], or see [bold]posterior restore --help[/bold].",
)
_debug = False
_OPTIONS = {  # what the library calls its arguments -> what this program does
    "give noise=": "give --noise",
    "continue it with resume=": "continue it with --resume",
    "then simulate": "then add --simulate",
    "replace it with overwrite=": "replace it with --overwrite",
    "value_range is (low, high)": "--range is LOW,HIGH",
    "give value_range=(low, high)": "give --range LOW,HIGH",
    "value_range sets others": "--range sets others",
    "value_range and slices are": "--range and --slices are",
    "with a lower rate=": "with a lower --rate",
    "give keep= (1 = stays) or edit= (1 = is repainted)": "give --keep or --edit",
    "paste_back=True puts kept pixels back: give keep= or edit=": (
        "--paste-back puts kept pixels back: give --keep or --edit"
    ),
    "give keep= or edit=": "give --keep or --edit",
    "give source= and target=": "give --source and --target",
    "a mask by edit= or keep=, or reference=": "a mask by --edit or --keep, or --reference",
    "style_noise= belongs to a style: give reference=": (
        "--style-noise belongs to a style: give --reference"
    ),
    "source= is": "--source is",
    "target= is": "--target is",
    "give target=": "give --target",
    "give source=": "give --source",
}


@dataclass(frozen=True)
class _Job:
    """One input and the folder of its results."""

    source: Path
    target: Path


def _print_version(wanted: bool) -> None:
    if wanted:
        from posterior import __version__

        typer.echo(f"posterior {__version__}")
        raise typer.Exit


@app.callback(help=_ROOT_HELP)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", hidden=True)
    ] = False,
) -> None:
    """Options of every command."""
    global _debug
    _debug = debug


@app.command(help=_RESTORE_HELP)
def restore(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="PNG, JPEG, TIFF, WebP or .npy; 8 or 16 bit, grey or RGB. Or NIfTI, DICOM, FITS, "
            "HDF5, NetCDF; an array of several as file.h5:name.",
        ),
    ],
    operator: Annotated[
        list[str],
        typer.Option(
            "--operator",
            "-a",
            metavar="NAME:KEY=VALUE,...",
            help="How the image was degraded; several are applied in the order given. See "
            "[bold]posterior operators[/bold].",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="photo.png goes to DIR/photo/.")
    ] = Path("out"),
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="STD|poisson:PEAK|poisson-gaussian:PEAK,STD",
            help="Standard deviation of the noise in \\[0, 1], where white is 1; or photon noise "
            "of PEAK counts at white, with read-out noise or without. A standard deviation is "
            "estimated from the image if nothing is given; 0.02 with --simulate.",
        ),
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate", help="The image is clean: degrade it first, then restore and score."
        ),
    ] = False,
    method: Annotated[
        str, typer.Option("--method", "-m", help="See [bold]posterior methods[/bold].")
    ] = "auto",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Noise levels to visit.  \\[default: the method's]")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Draws per image.")] = 4,
    seed: Annotated[int, typer.Option(help="Any integer; the same one gives the same images.")] = 0,
    prior: Annotated[
        str, typer.Option(help="photo, which is bundled; or a file, such as of train-prior.")
    ] = "photo",
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Of science files and .npy: the values of black and white.  \\[default: those "
            "that the prior was trained on, else the extremes of the file]",
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:END", help="Slices of a volume: 90 or 80:100.  \\[default: all]"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where the prior runs: cpu, cuda, cuda:1, mps.  \\[default: cpu]"),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(metavar="WxH+X+Y", help="Restore a part: 256, 256x192 or 256x192+10+20."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Draws computed together; changes no result.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the state of the run in DIR.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue the run that was saved in DIR.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results in the output folder.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Start even if it takes over ten minutes.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Restore degraded images."""
    say = _silent if quiet else _say
    with _errors(code=2):
        jobs = _jobs(images, out, overwrite)
        _check_options(method, crop, resume)
        noise_model = None if noise is None else _noise(noise)
        limits = None if value_range is None else _two_numbers("--range", value_range)
        applied = _operators(operator)
    with _errors(code=2):
        from posterior.restoration import as_prior

        loaded = as_prior(prior, device)

    from posterior.restoration import prepare

    store = checkpoint or resume  # a run that goes on can be interrupted again
    plans: list[tuple[_Job, Plan]] = []
    failed = 0
    for job in jobs:
        try:
            plan = prepare(
                job.source, applied, noise_model, loaded, method, samples, seed, simulate,
                steps=steps, crop=crop, value_range=limits, slices=slices,
            )  # fmt: skip
        except Exception as problem:
            failed += 1
            _complain(_sentence(problem, job.source))
        else:
            plans.append((job, plan))
    if plans:
        with _errors(code=2):
            _announce(plans, yes, say)
    for job, plan in plans:
        try:
            result = plan.run(
                max_batch=max_batch,
                progress=False if quiet else None,
                checkpoint=store and store / job.target.name,
                resume=_started(resume, job),
            )
            _save(result, job.target, overwrite)
        except KeyboardInterrupt:
            hint = f"; continue with --resume {store}" if store else ""
            _complain(f"interrupted{hint}")
            raise typer.Exit(130) from None
        except Exception as problem:
            failed += 1
            _complain(_sentence(problem, job.source))
        else:
            _summarise(result, job.target, say)
    if failed:
        if len(jobs) > 1:
            _complain(f"{failed} of {len(jobs)} images failed")
        raise typer.Exit(1)


@app.command(help=_EDIT_HELP)
def edit(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="PNG, JPEG, TIFF, WebP or .npy; grey or RGB."),
    ],
    prior: Annotated[str, typer.Option(metavar="MODEL", help="The model: a folder or a name.")],
    source: Annotated[str | None, typer.Option(help="What the image shows.")] = None,
    target: Annotated[str | None, typer.Option(help="What the edit should show.")] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="See [bold]posterior methods[/bold]; auto is postedit, blended with a mask, dps "
            "with a reference.",
        ),
    ] = "auto",
    repaint: Annotated[
        Path | None, typer.Option("--edit", metavar="FILE", help="Mask: white = to repaint.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Mask: white = stays.")
    ] = None,
    paste_back: Annotated[
        bool, typer.Option("--paste-back", help="Put kept pixels back exactly as they were.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take over the style of this image, of any size."),
    ] = None,
    style_noise: Annotated[
        float | None,
        typer.Option(help="With --reference: less copies more of the style.  \\[default: 0.003]"),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far from the source, in (0, 1]; some methods; 0.45 with --reference."
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Guidance scale.  \\[default: the method's]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Noise levels to visit.  \\[default: the method's]")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Variants.")] = 1,
    seed: Annotated[int, typer.Option(help="Any integer; the same one gives the same images.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps.  \\[default: cpu]")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="photo.png goes to DIR/photo/.")
    ] = Path("out"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results in the output folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Edit images."""
    say = _silent if quiet else _say
    with _errors(code=2):
        from posterior.editing import check_arguments
        from posterior.editing import edit as edited
        from posterior.images import read_image
        from posterior.operators import Mask
        from posterior.restoration import as_prior

        jobs = _jobs(images, out, overwrite)
        check_arguments(
            source, target, method, repaint, keep, reference, strength, paste_back, style_noise
        )
        if reference is not None:
            read_image(reference)
        if repaint is not None or keep is not None:
            Mask(keep=keep, edit=repaint)
        loaded = as_prior(prior, device)

    failed = 0
    for job in jobs:
        try:
            result = edited(
                job.source, loaded, source, target, method, edit=repaint, keep=keep,
                reference=reference, style_noise=style_noise, strength=strength, n=samples,
                seed=seed, paste_back=paste_back, scale=scale, steps=steps,
                progress=False if quiet else None,
            )  # fmt: skip
            _save(result, job.target, overwrite)
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(130) from None
        except Exception as problem:
            failed += 1
            _complain(_sentence(problem, job.source))
        else:
            for line in result.report.splitlines():
                told = "distance" in line or "kept pixel" in line
                if told or line in result.provenance["notes"]:
                    say(f"  {line}")
            say(f"  {job.target / 'sheet.png'}")
    if failed:
        if len(jobs) > 1:
            _complain(f"{failed} of {len(jobs)} images failed")
        raise typer.Exit(1)


def _save(result: Restoration | Edited, target: Path, overwrite: bool = False) -> None:
    """Write the results; where the disk refuses after all, elsewhere, so that no draw is lost."""
    try:
        result.save(target, overwrite=overwrite)
    except (FileProblem, OSError) as problem:
        rescued = Path(tempfile.mkdtemp(prefix="posterior-")) / target.name
        result.save(rescued)
        raise FileProblem(f"{problem}; the results are in {rescued}") from problem


@app.command(help=_TRAIN_HELP)
def train_prior(
    images: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="PNG, JPEG, TIFF, WebP; .npy of (H, W), (H, W, C), stacks (N, H, W), real or "
            "complex. A tenth is held out to be judged by.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The weights, .safetensors.")
    ],
    minutes: Annotated[
        float | None, typer.Option(help="How long, by the wall clock.  \\[default: 60]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="How many steps instead: such a run can be repeated exactly."),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Values of black and white, beyond which is clipped.  \\[default: full scale of 8 "
            "and 16 bits; other numbers are divided by the largest]",
        ),
    ] = None,
    augment: Annotated[
        str,
        typer.Option(
            help="none; flips: left-right; turns: all eight orientations; photo: scales and "
            "exposures as well."
        ),
    ] = "flips",
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the patches.  \\[default: 64, or the smallest image]"),
    ] = None,
    width: Annotated[
        int, typer.Option(help="Channels of the network, a multiple of 12; photo has 96.")
    ] = 48,
    batch: Annotated[int, typer.Option(min=1, help="Pixels of one batch.")] = 65536,
    rate: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Any integer.")] = 0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue; --minutes counts what is behind, too."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train a small prior on a folder of images."""
    say = _silent if quiet else _say
    with _errors(code=2):
        from posterior.training import prepare

        training = prepare(
            images, out, minutes=minutes, steps=steps, size=size, width=width, augment=augment,
            value_range=None if value_range is None else _two_numbers("--range", value_range),
            pixels=batch, rate=rate, seed=seed, resume=resume, overwrite=overwrite,
        )  # fmt: skip
    for line in training.summary():
        say(line)
    with _errors(code=1):
        try:
            training.run(False if quiet else None, say)
        except KeyboardInterrupt:
            hint = "; continue with --resume" if training.checkpoint.is_file() else ""
            _complain(f"interrupted{hint}")
            raise typer.Exit(130) from None
    say(f"{training.sheet}: held-out patches over draws")
    say(f'{training.out}: posterior.load_prior("{training.out}")')


@app.command()
def methods() -> None:
    """The sampling methods: what they need, what they cost, when to use them."""
    from posterior.guidance.registry import table

    for m in table():
        lines = [
            ("needs", m.needs or "nothing"),
            ("network calls", m.nfe),
            ("backward passes", m.vjp),
            ("source", m.paper),
        ]
        _card(m.name, m.when, lines)
    _say(
        "T is the number of steps. --method auto takes denoising where y is x in white noise, mmps"
    )
    _say("where y is linear in x, else the first of these that can use the operator; of an edit,")
    _say("postedit, blended with a mask, dps with a reference.")


@app.command()
def operators() -> None:
    """The ways an image can be degraded, for --operator."""
    from posterior.operators import table

    for name, parameters, text in table():
        summary, _, example = text.rpartition("; e.g. ")
        _card(name, summary or text, [("parameters", parameters), ("example", example)])
    _say("Several --operator are applied in the order given. From Python any function will do, by")
    _say("posterior.operators.from_callable.")


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where to put it.  \\[default: a new one]"),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=2, help="Draws.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Noise levels to visit.")] = None,
    seed: Annotated[int, typer.Option(help="Any integer.")] = 0,
) -> None:
    """Blur a photograph, tear holes into it, and restore it: a few minutes on two CPU cores."""
    with _errors(code=2):
        target = _free_name(Path("posterior-demo")) if out is None else out
        from posterior.folders import check_free

        if target.is_dir() and any(target.iterdir()):
            raise FileProblem(f"{target} exists and is not empty: name another folder")
        check_free(target)
    with _errors(code=1):
        from posterior.operators import GaussianBlur, Mask
        from posterior.restoration import prepare

        started = time.perf_counter()
        asset = resources.files("posterior") / "assets" / "demo.png"
        with resources.as_file(asset) as photo:
            plan = prepare(
                photo,
                [GaussianBlur(sigma=1.5), Mask(keep=_demo_mask(128, 128))],
                0.04,
                n=samples,
                seed=seed,
                simulate=True,
                steps=steps,
            )
        _say("A photograph is blurred (sigma 1.5), torn (a fifth is missing) and made noisy (2 %).")
        _announce([(_Job(Path("demo.png"), target), plan)], True, _say)
        result = plan.run()
        _save(result, target)
        _scores_table(result)
        inside, outside = _spread(result, ~_demo_mask(128, 128))
        _say(
            f"The draws differ by {inside:.3f} of full scale inside the holes and by {outside:.3f} "
            "outside."
        )
        _say(f"Done in {_duration(time.perf_counter() - started)}. Contact sheet:")
        _say(str(target / "sheet.png"))


def main() -> None:
    """The console script: one line on stderr for every error, never a traceback."""
    usage: Any = typer.BadParameter.__mro__[1]  # click's UsageError, which typer may vendor
    try:
        code = app(standalone_mode=False)
    except usage.__mro__[1] as problem:
        where = getattr(problem, "ctx", None)
        hint = f" (see {where.command_path} --help)" if where is not None else ""
        text = " ".join(problem.format_message().split())
        if text:
            _complain(text.rstrip(".") + hint)
        code = problem.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted")
        code = 130
    except BrokenPipeError:  # posterior methods | head
        sys.stderr.close()
        code = 1
    except Exception as problem:
        if _debug:
            raise
        _complain(f"{_sentence(problem)} (posterior --debug ... shows where)")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


# Before a run ------------------------------------------------------------------------------------


def _jobs(images: Sequence[Path], out: Path, overwrite: bool) -> list[_Job]:
    """Where each result goes; raises before anything is read if one may not go there."""
    from posterior.folders import check_free
    from posterior.science_files import result_name

    jobs: dict[Path, _Job] = {}
    for image in images:
        target = out / result_name(image)
        if target in jobs:
            raise InputError(
                f"{jobs[target].source} and {image} would both be written to {target}: restore "
                "them in two calls with different --out"
            )
        try:
            check_free(target, overwrite)
        except FileProblem as problem:
            raise InputError(str(problem).replace("overwrite it", "add --overwrite")) from None
        if target.resolve() in image.resolve().parents:
            raise InputError(f"{image} lies inside its own output folder {target}")
        jobs[target] = _Job(image, target)
    return list(jobs.values())


def _started(resume: Path | None, job: _Job) -> Path | None:
    """The checkpoint of one image; None where an interrupted run had not come to it."""
    folder = None if resume is None else resume / job.target.name
    return folder if folder is not None and folder.exists() else None


def _check_options(method: str, crop: str | None, resume: Path | None) -> None:
    from posterior.guidance.registry import REGISTRY
    from posterior.restoration import CROP

    if method.lower().replace("_", "-") not in [*REGISTRY, "auto"]:
        raise unknown_name("method", method, [*REGISTRY, "auto"])
    if crop is not None and not CROP.fullmatch(crop.strip()):
        raise InputError(f"--crop is N, WxH or WxH+X+Y, such as 256x192+10+20, not {crop!r}")
    if resume is not None and not resume.is_dir():
        raise FileProblem(f"--resume {resume}: there is no such folder")


def _noise(text: str) -> NoiseModel:
    """The noise that --noise describes, in the library's units: full scale is 2."""
    from posterior.operators import GaussianNoise, PoissonGaussianNoise, PoissonNoise

    kind, colon, rest = text.strip().partition(":")
    if not colon:
        return GaussianNoise(2 * _std(text))
    kinds = ("poisson", "poisson-gaussian")
    if kind not in kinds:
        raise unknown_name("--noise", kind, kinds)
    peak, comma, std = rest.partition(",")
    try:
        photons = PoissonNoise(1.0, peak=float(peak))
    except ValueError:  # no number, or none above 0
        raise InputError(
            f"--noise {kind}:PEAK is the number of photons at white, such as {kind}:1000"
            f"{',0.01' * (kind == kinds[1])}, not {peak!r}"
        ) from None
    if kind == kinds[0]:
        if comma:
            raise InputError(f"--noise poisson takes PEAK alone, not {rest!r}: poisson-gaussian?")
        return photons
    if not comma:
        raise InputError("--noise poisson-gaussian takes PEAK,STD, such as 1000,0.01")
    return PoissonGaussianNoise(1.0, 2 * _std(std), peak=photons.peak)


def _std(text: str) -> float:
    try:
        std = float(text)
    except ValueError:
        raise InputError(
            f"--noise is a standard deviation in [0, 1], poisson:PEAK or poisson-gaussian:PEAK,STD,"
            f" not {text!r}"
        ) from None
    if not 0 <= std <= 1:
        hint = f"; {std:g} of 255 is {std / 255:.3g}" if 1 < std <= 255 else ""
        raise InputError(f"--noise is a standard deviation in [0, 1], got {std:g}{hint}")
    return std


def _two_numbers(option: str, text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise InputError(f"{option} is two numbers, such as 0,1, not {text!r}") from None
    return low, high


def _operators(texts: Sequence[str]) -> Operator:
    from posterior.restoration import as_operator

    return as_operator(list(texts))


def _announce(plans: Sequence[tuple[_Job, Plan]], yes: bool, say: Callable[[str], None]) -> None:
    """Say what the run will cost; raise if that is long and nobody said yes."""
    timed: dict[object, float] = {}
    total = 0.0
    for job, plan in plans:
        key = (plan.event, plan.groups, type(plan.method))
        if key not in timed:
            timed[key] = plan.seconds()
        total += timed[key]
        height, width = plan.event[-2:]
        passes = f" and {_many(plan.vjps, 'backward pass', 'es')}" if plan.vjps else ""
        say(
            f"{job.source.name}: {width} x {height}, {type(plan.method).__name__}, "
            f"{_many(plan.steps, 'step')}, {_many(plan.n, 'draw')}: "
            f"{_many(plan.nfe, 'network call')}{passes}, about {_duration(timed[key])}"
        )
        for note in plan.notes:
            say(f"  {_in_options(note)}")
    if len(plans) > 1:
        say(f"{len(plans)} images: about {_duration(total)} in all")
    if total > LONG and not yes:
        sizes = [math.prod((p.y if p.clean is None else p.clean).shape[-2:]) for _, p in plans]
        side = math.sqrt(max(sizes) * 0.9 * LONG / total)
        side = int(side // 16 * 16)
        part = f", or a part of each with --crop {side}" if side >= 32 else ""
        raise InputError(
            f"this takes about {_duration(total)}: start it with --yes{part}, or ask for fewer "
            "--samples or --steps"
        )


def _free_name(wanted: Path) -> Path:
    """`wanted`, or the first of wanted-2, wanted-3, ... that does not exist."""
    name, k = wanted, 1
    while name.exists():
        k += 1
        name = wanted.with_name(f"{wanted.name}-{k}")
    return name


def _demo_mask(height: int, width: int) -> Any:
    """(H, W) bool, True = seen: three round holes and two scratches."""
    import torch

    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    hidden = torch.zeros_like(x, dtype=torch.bool)
    for top, left, radius in ((0.30, 0.27, 0.12), (0.62, 0.70, 0.15), (0.82, 0.22, 0.09)):
        hidden |= (y - top) ** 2 + (x - left) ** 2 < radius**2
    for offset, slope in ((0.15, 0.35), (1.05, -0.8)):
        hidden |= (y - offset - slope * x).abs() < 0.02
    return ~hidden


# Afterwards --------------------------------------------------------------------------------------


def _summarise(result: Restoration, target: Path, say: Callable[[str], None]) -> None:
    found = result.metrics
    if found:
        better = found["mean"]["psnr"]
        text = f"mean of the draws {better:.2f} dB"
        if "psnr" in found.get("degraded", {}):
            text += f", degraded {found['degraded']['psnr']:.2f} dB"
        if "psnr" in found.get("baseline", {}):
            text += f", {found['baseline']['name']} {found['baseline']['psnr']:.2f} dB"
        say(f"  {text}")
    failed = int((~result.good).sum())
    if failed:
        say(f"  {failed} of {result.draws.shape[0]} draws failed (not finite): see report.json")
    say(f"  {target / 'sheet.png'}")


def _scores_table(result: Restoration) -> None:
    found = result.metrics
    rows = [
        (label, f"{part['psnr']:.2f}", f"{part['ssim']:.3f}")
        for label, part in (
            ("degraded", found["degraded"]),
            (str(found["baseline"]["name"]), found["baseline"]),
            (f"mean of {result.draws.shape[0]} draws", found["mean"]),
        )
        if part.get("psnr") is not None
    ]
    each = found["draws"]["psnr"]
    rows.append(("one draw (average)", f"{sum(each) / len(each):.2f}", "-"))
    _table(["against the original", "PSNR (dB)", "SSIM"], rows)


def _spread(result: Restoration, where: Any) -> tuple[float, float]:
    """Mean standard deviation over the pixels that are True, and over the others."""
    from posterior.sheet import full_scale_std

    std = full_scale_std(result.std[0])
    return float(std[where].mean()), float(std[~where].mean())


def _card(name: str, summary: str, lines: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(name, style="bold cyan")
    console.print(Padding(summary, (0, 0, 0, 4)))
    table = Table.grid(padding=(0, 2))
    for key, value in lines:
        if value and value != "-":
            table.add_row(key, value)
    console.print(Padding(table, (0, 0, 1, 4)), style="dim")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def _many(count: int, thing: str, ending: str = "s") -> str:
    return f"{count} {thing}{'' if count == 1 else ending}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


# Talking -----------------------------------------------------------------------------------------


def _say(text: str) -> None:
    typer.echo(text)


def _silent(text: str) -> None:
    """Say nothing."""


def _complain(text: str) -> None:
    typer.echo(f"posterior: {text}", err=True)


def _in_options(text: str) -> str:
    """A text of the library in the words of this program."""
    for python, option in _OPTIONS.items():
        text = text.replace(python, option)
    return text


def _sentence(problem: BaseException, source: Path | None = None) -> str:
    """One line that names the file at fault."""
    if _debug:
        raise problem
    text = _in_options(" ".join(str(problem).split())) or type(problem).__name__
    if not isinstance(problem, PosteriorError):
        text = f"{type(problem).__name__}: {text}"
    return text if source is None or str(source) in text else f"{source}: {text}"


@contextmanager
def _errors(code: int) -> Iterator[None]:
    """Turn the library's errors into one line and an exit code."""
    try:
        yield
    except PosteriorError as problem:
        _complain(_sentence(problem))
        raise typer.Exit(code) from None
