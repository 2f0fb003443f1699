"""The command line; the only place that knows Hydra and OmegaConf.

Hydra composes the YAML; the result is parsed once into strict settings. Jobs of a `--multirun` run one
after the other in this process: Hydra's own sweeper would end all of them with the first that fails.
"""

import argparse
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffing.core.config import parse
from diffing.core.errors import UserError, one_line
from diffing.core.method import PLANNED, load_method
from diffing.core.settings import RunConfig
from diffing.core.suggest import did_you_mean

CONFIGS = Path(__file__).parent / "configs"
GROUPS = ("model", "organism", "data", "diffing/method", "infrastructure")
_INTERRUPTED = 130

HELP = """diffing: what did finetuning change in this model?

Compares a base language model with a finetuned variant and writes numbers, tables and a report.

usage: python main.py [GROUP=NAME ...] [OPTION=VALUE ...] [--multirun] [--cfg job] [--info]

  python main.py                                             the embedded pair: runs offline, in minutes
  python main.py organism=roman_concrete                     another organism
  python main.py organism=caps model=gemma3_1B               a pair from the hub
  python main.py model=custom model.id=DIR_OR_ID organism=custom organism.finetuned=DIR_OR_ID
  python main.py --multirun organism=caps,roman_concrete     several runs, one after the other

groups (GROUP=NAME)
{groups}

often used options (all of them: --cfg job)
  organism_variant=NAME                  another finetuned model of the organism
  pipeline.mode=full|diffing|report      everything, methods only, or the report again from finished results
  pipeline.methods=[kl,…]                several methods in one process
  data.max_tokens=N  data.max_length=N   how much text: tokens per dataset, tokens per document
  data=custom data.path=FILE             your own text (jsonl, parquet, csv, txt)
  model.dtype=bfloat16                   compute type; also device_map, attn_implementation, quantization, revision
  pair.sharing=adapter|merged|separate   how the two models share memory
  null_pair=identical|dtype              what the method says where nothing was finetuned
  infrastructure.storage.base_dir=DIR    where results go (./outputs)
  overwrite=true                         compute again what is finished
  seed=N

flags
  --multirun, -m    values with commas become separate runs
  --cfg job         print the composed configuration; --cfg job --package model prints a part
  --info            versions, folders, names of models and organisms (--info config|defaults|…: Hydra's)
  --config-dir DIR  add configurations of your own (DIR/model/mine.yaml, …)

exit codes: 0 done, 1 a fault of ours, 2 something you can mend, 130 interrupted"""


@dataclass(frozen=True)
class Arguments:
    """The command line, split.

    Args:
        overrides: `GROUP=NAME` and `OPTION=VALUE`.
        multirun: Whether commas separate runs.
        config_dir: A user's own configurations.
        config_name: Name of the primary configuration.
    """

    overrides: list[str]
    multirun: bool
    config_dir: str | None
    config_name: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault of ours, 2 something the user can mend, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted. What is whole is kept; the same command goes on from there.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(HELP.format(groups=_group_lines(_config_dir(argv))))
        return 0
    if argv in (["--version"], ["-V"]):
        from diffing import __version__

        print(f"diffing {__version__}")
        return 0
    if _is_plain_info(argv):
        _print_info(_config_dir(argv))
        return 0
    known, flags = _parse(argv)
    jobs = _jobs(known)
    if flags:
        return _hydra(argv)
    return _run_all(known, jobs, argv)


def _parse(argv: list[str]) -> tuple[Arguments, bool]:
    """Split the command line; the flag says that Hydra itself has to answer (--cfg, --info X, …)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default="config")
    parser.error = _usage_error  # type: ignore[method-assign]
    found = parser.parse_intermixed_args(argv)
    delegated = bool(found.cfg or found.info or found.hydra_help or found.shell_completion)
    return Arguments(found.overrides, found.multirun, found.config_dir, found.config_name), delegated


def _usage_error(message: str) -> Any:
    raise UserError(f"{message[0].upper()}{message[1:]}; see python main.py --help.")


def _run_all(arguments: Arguments, jobs: list[list[str]], argv: list[str]) -> int:
    """Run every job; the worst exit code counts, and one job's failure leaves the others alone."""
    from diffing.core.progress import say

    command = " ".join(["python", "main.py", *map(shlex.quote, argv)])
    if len(jobs) == 1:
        settings = _settings(arguments, jobs[0])
        from diffing.pipeline.modes import perform
        from diffing.pipeline.running import Session

        perform(settings, Session(command))
        return 0
    composed = [_composed(arguments, overrides) for overrides in jobs]
    from diffing.pipeline.modes import perform
    from diffing.pipeline.running import Session

    session = Session(command)
    outcomes: list[tuple[str, int, str]] = []
    for number, (overrides, settings) in enumerate(zip(jobs, composed, strict=True), 1):
        label = " ".join(overrides)
        say(f"[{number}/{len(jobs)}] {label}")
        code, reason = _attempt(settings, lambda settings: perform(settings, session))
        outcomes.append((label, code, reason))
    print()
    for label, code, reason in outcomes:
        print(f"{'done' if code == 0 else 'FAILED'}  {label}{'  ' + reason if reason else ''}")
    return max((code for _, code, _ in outcomes), key=lambda c: (c == 1, c))


def _composed(arguments: Arguments, overrides: list[str]) -> RunConfig | UserError:
    try:
        return _settings(arguments, overrides)
    except UserError as error:
        return error


def _attempt(settings: RunConfig | UserError, action: Callable[[RunConfig], Any]) -> tuple[int, str]:
    """Exit code and reason of one job of several; only an interruption by the user ends them all."""
    try:
        if isinstance(settings, UserError):
            raise settings
        action(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code, str(error)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return 1, one_line(error)
    return 0, ""


# Composition


def _jobs(arguments: Arguments) -> list[list[str]]:
    """The overrides of each run; one list unless `--multirun` is given."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides(arguments.overrides)
    except OverrideParseException as error:
        raise UserError(
            f"Cannot read the option {error.override!r}: write OPTION=VALUE, with quotes around spaces and the like."
        ) from None
    for override in parsed:
        _check_override(override, arguments)
    if not arguments.multirun:
        return [arguments.overrides]
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _check_override(override: Any, arguments: Arguments) -> None:
    """Refuse what Hydra would misread or end with a traceback."""
    key = override.key_or_group
    text = override.input_line or ""
    value = text.partition("=")[2]
    if key == "diffing/method" and value.startswith("["):
        names = value.strip("[]")
        raise UserError(
            f"diffing/method takes one method, not {value}: use pipeline.methods=[{names}], or --multirun {key}={names}."
        )
    if override.is_sweep_override() and not arguments.multirun:
        raise UserError(f"{text} names several values; add --multirun to run one after the other.")
    if key in GROUPS and not override.is_delete():
        for name in _values(override, value):
            if not (arguments.multirun and key == "diffing/method" and name in PLANNED):
                _check_choice(key, name, arguments.config_dir)


def _values(override: Any, value: str) -> list[str]:
    if override.is_sweep_override():
        return [str(v) for v in override.sweep_string_iterator()]
    return [value.strip("'\"")]


def _check_choice(group: str, name: str, config_dir: str | None) -> None:
    names = choices(group, config_dir)
    if name in names:
        return
    if group == "diffing/method":
        load_method(name)
    raise UserError(f"{group}={name}: there is no such {group.rpartition('/')[2]}; {did_you_mean(name, names)}")


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """Names that a group offers, the package's and the user's."""
    folders = [CONFIGS / group, *([Path(config_dir) / group] if config_dir else [])]
    return sorted({p.stem for folder in folders for p in folder.glob("*.yaml") if not p.stem.startswith("_")})


def _settings(arguments: Arguments, overrides: list[str]) -> RunConfig:
    """Compose and parse; `model=auto` becomes the first model that the organism lists."""
    for name in (o.partition("=")[2] for o in overrides if o.startswith("diffing/method=")):
        _check_choice("diffing/method", name, arguments.config_dir)
    values = compose(overrides, arguments.config_dir, arguments.config_name)
    if values["model"]["name"] == "auto":
        models = list(values["organism"].get("models") or {})
        if not models:
            raise UserError(
                f"model=auto: organism {values['organism']['name']} lists no model; name one with model=NAME."
            )
        kept = [o for o in overrides if not o.startswith("model=")]
        values = compose([*kept, f"model={models[0]}"], arguments.config_dir, arguments.config_name)
    return parse(RunConfig, values)


def compose(overrides: list[str], config_dir: str | None = None, config_name: str = "config") -> dict[str, Any]:
    """The composed configuration as plain values.

    Raises:
        UserError: An option, group or file does not exist, or a value cannot be read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir {config_dir}: there is no such folder.")
        search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra_compose(config_name, overrides=[*overrides, *search])
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_composition_sentence(error, overrides)) from None
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k != "hydra"}


def _composition_sentence(error: Exception, overrides: list[str]) -> str:
    text = " ".join(str(error).split())
    if found := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text):
        return f"Unknown option {found[1]}: {did_you_mean(found[1], _option_names(overrides))}"
    if found := re.search(r"No match in the defaults list for '?([\w/]+)'?", text):
        return f"Unknown group {found[1]}: {did_you_mean(found[1], GROUPS)}"
    return f"The configuration cannot be composed: {one_line(error)}"


def _option_names(overrides: list[str]) -> list[str]:
    """Every dotted option that exists with the groups chosen in `overrides`, and the groups."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    groups = [o for o in overrides if o.partition("=")[0] in GROUPS]
    try:
        values = compose(groups)
    except (UserError, HydraException, OmegaConfBaseException):
        values = compose([])
    return [*_dotted(values, ""), *GROUPS]


def _dotted(values: dict[str, Any], prefix: str) -> list[str]:
    names = []
    for key, value in values.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict) and key != "models":
            names += _dotted(value, f"{prefix}{key}.")
    return names


# Help and information


def _config_dir(argv: list[str]) -> str | None:
    for i, argument in enumerate(argv):
        if argument in ("--config-dir", "-cd") and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith("--config-dir="):
            return argument.partition("=")[2]
    return None


def _group_lines(config_dir: str | None) -> str:
    lines = []
    for group in GROUPS:
        names = choices(group, config_dir)
        shown = ", ".join(names[:14]) + (f", … ({len(names)} in all: --info)" if len(names) > 14 else "")
        lines.append(f"  {group}: {shown}")
    return "\n".join(lines)


def _is_plain_info(argv: list[str]) -> bool:
    flags = {"--info", "-i"}
    if not flags & set(argv):
        return False
    after = argv[next(i for i, a in enumerate(argv) if a in flags) + 1 :]
    return not after or "=" in after[0] or after[0].startswith("-")


def _print_info(config_dir: str | None) -> None:
    from diffing.core.files import cache_dir
    from diffing.core.method import method_names
    from diffing.core.provenance import git_state, machine, versions

    facts = machine()
    print("versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print(f"source: {git_state() or 'installed package'}")
    print(f"machine: {facts['system']} {facts['machine']}, {facts['cores']} cores")
    print(f"cache folder (DIFFING_CACHE): {cache_dir()}")
    print(f"methods: {', '.join(method_names())}; planned: {', '.join(m for m in PLANNED if m not in method_names())}")
    for group in GROUPS:
        print(f"{group}: {', '.join(choices(group, config_dir))}")
    print("options: python main.py --cfg job")


def _hydra(argv: list[str]) -> int:
    """Let Hydra answer --cfg, --info X, --hydra-help and shell completion."""
    import hydra

    sys.argv = ["main.py", *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(lambda config: None)()
    except SystemExit as ended:
        return 0 if not ended.code else 2
    return 0
