"""The command line; the only room that knows Hydra and OmegaConf.

Hydra composes the YAML; the result is parsed once into strict settings. Jobs of a `--multirun` run one
after the other in this process: Hydra's own sweeper would end all of them with the first that fails.
"""

import argparse
import io
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from diffing.cli.composition import CONFIGS, Arguments, compose, settings_of, split_jobs
from diffing.cli.information import HELP, config_dir_of, group_lines, is_plain_info, print_info
from diffing.core.errors import UserError, one_line
from diffing.core.settings import RunConfig

if TYPE_CHECKING:
    from diffing.pipeline.running import Session

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 a fault of ours, 2 something the user can mend, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
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


def settings_from(argv: Sequence[str]) -> RunConfig:
    """The settings that a command line asks for, without running anything; what the dashboard is started with.

    Raises:
        UserError: An option does not exist or fit, or the words ask for several runs or for information.
    """
    known, is_question = _parse(list(argv))
    if known.multirun or is_question:
        raise UserError(f"{' '.join(argv)}: the dashboard takes OPTION=VALUE and GROUP=NAME alone.")
    (overrides,) = split_jobs(known)
    return settings_of(known, overrides)


def _main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(HELP.format(groups=group_lines(config_dir_of(argv))))
        return 0
    if argv in (["--version"], ["-V"]):
        from diffing import __version__

        print(f"diffing {__version__}")
        return 0
    if is_plain_info(argv):
        print_info(config_dir_of(argv))
        return 0
    known, flags = _parse(argv)
    jobs = split_jobs(known)
    if flags:
        for overrides in jobs:
            compose(overrides, known.config_dir, known.config_name)
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
        settings = settings_of(arguments, jobs[0])
        from diffing.pipeline.running import Session

        session = Session(command)
        _perform(arguments, jobs[0], settings, session)
        if session.faults:
            print(f"error: {_faults(session)}", file=sys.stderr)
        return 1 if session.faults else 0
    composed = [_composed(arguments, overrides) for overrides in jobs]
    from diffing.pipeline.running import Session

    session = Session(command)
    shared = set.intersection(*map(set, jobs))
    outcomes: list[tuple[str, int, str]] = []
    for number, (overrides, settings) in enumerate(zip(jobs, composed, strict=True), 1):
        label = " ".join(o for o in overrides if o not in shared) or " ".join(overrides)
        say(f"[{number}/{len(jobs)}] {label}")
        try:
            session.faults.clear()
            code, reason = _attempt(settings, partial(_perform, arguments, overrides, session=session))
            if session.faults and code == 0:
                code, reason = 1, _faults(session)
        except KeyboardInterrupt:
            _print_outcomes([*outcomes, (label, _INTERRUPTED, "interrupted")])
            raise
        outcomes.append((label, code, reason))
    _print_outcomes(outcomes)
    return max((code for _, code, _ in outcomes), key=lambda c: (c == 1, c))


def _faults(session: "Session") -> str:
    """One sentence on the methods that failed without ending the others."""
    told = "; ".join(dict.fromkeys(session.faults))
    return f"a fault of the method's own code, told above, left out {len(session.faults)} of the results: {told}"


def _perform(arguments: Arguments, overrides: list[str], settings: RunConfig, session: "Session") -> None:
    """Do what `pipeline.mode` says; the benchmark is above the pipeline and composes its own pairs."""
    if settings.pipeline.mode == "benchmark":
        from diffing.cli.benchmark import benchmark

        benchmark(arguments, overrides, settings, session)
        return
    from diffing.pipeline.modes import perform

    perform(settings, session)


def _print_outcomes(outcomes: list[tuple[str, int, str]]) -> None:
    print()
    for label, code, reason in outcomes:
        print(f"{'done' if code == 0 else 'FAILED'}  {label}{'  ' + reason if reason else ''}")


def _composed(arguments: Arguments, overrides: list[str]) -> RunConfig | UserError:
    try:
        return settings_of(arguments, overrides)
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


def _hydra(argv: list[str]) -> int:
    """Let Hydra answer --cfg, --info X, --hydra-help and shell completion."""
    import hydra

    sys.argv = ["main.py", *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(lambda config: None)()
    except SystemExit as ended:
        return 0 if not ended.code else 2
    return 0
