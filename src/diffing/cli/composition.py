"""From overrides to settings: checks, composes and parses; every mistake becomes one sentence."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffing.core.config import parse
from diffing.core.errors import UserError, one_line
from diffing.core.method import PLANNED, load_method
from diffing.core.settings import RunConfig
from diffing.core.suggest import did_you_mean

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = ("model", "organism", "data", "diffing/method", "infrastructure")


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


def split_jobs(arguments: Arguments) -> list[list[str]]:
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
            f"{key} takes one method, not {value}: use pipeline.methods=[{names}] or --multirun {key}={names}."
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
    return [_unquoted(value)]


def _unquoted(value: str) -> str:
    return value.strip("'\"")


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


def settings_of(arguments: Arguments, overrides: list[str]) -> RunConfig:
    """Compose and parse; `model=auto` becomes the first model that the organism lists.

    Raises:
        UserError: A name, option or value does not exist or fit.
    """
    for group, _, name in (o.partition("=") for o in overrides):
        if group in GROUPS:
            _check_choice(group, _unquoted(name), arguments.config_dir)
    values = compose(overrides, arguments.config_dir, arguments.config_name)
    for group in ("model", "organism"):
        if not isinstance(values.get(group), dict) or not values[group].get("name"):
            chosen = next((o for o in overrides if o.startswith(f"{group}=")), group)
            raise UserError(
                f"{chosen}: its configuration is no mapping with a name; see {CONFIGS / group} for examples."
            )
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
    from yaml import YAMLError

    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir {config_dir}: there is no such folder.")
        search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra_compose(config_name, overrides=[*map(_with_name_quoted, overrides), *search])
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_composition_sentence(error, overrides)) from None
    except (YAMLError, TypeError, AttributeError) as error:
        chosen = " ".join(o for o in overrides if o.partition("=")[0] in GROUPS)
        raise UserError(
            f"A configuration file ({chosen}) is not the mapping it should be: {one_line(error)}."
        ) from None
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k != "hydra"}


def _with_name_quoted(override: str) -> str:
    """An override whose name of a configuration stays text: Hydra reads nan, true, null and 7 as values."""
    key, _, name = override.partition("=")
    return f"{key}='{name}'" if key in GROUPS and re.fullmatch(r"[\w.+-]+", name) else override


def _composition_sentence(error: Exception, overrides: list[str]) -> str:
    text = " ".join(str(error).split())
    if found := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text):
        return f"Unknown option {found[1]}: {did_you_mean(found[1], _option_names(overrides))}"
    if found := re.search(r"No match in the defaults list for '?([\w/]+)'?", text):
        return f"Unknown group {found[1]}: {did_you_mean(found[1], GROUPS)}"
    text = one_line(error).partition(" Search path:")[0].partition(" Config search path:")[0]
    return f"The configuration cannot be composed: {text.rstrip('.')}."


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
