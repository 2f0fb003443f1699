"""Help and information, without importing anything heavy."""

from diffing.cli.composition import GROUPS, choices
from diffing.core.files import cache_dir
from diffing.core.method import PLANNED, method_names
from diffing.core.provenance import git_state, machine, versions

HELP = """diffing: what did finetuning change in this model?

Compares a base language model with a finetuned variant and writes numbers, tables and a report.

usage: python main.py [GROUP=NAME ...] [OPTION=VALUE ...] [--multirun] [--cfg job] [--info]

  python main.py                                             the embedded pair: runs offline, in minutes
  python main.py organism=roman_concrete                     another organism
  python main.py organism=caps model=gemma3_1B               a pair from the hub
  python main.py model=custom model.id=DIR_OR_ID organism=custom organism.finetuned=DIR_OR_ID
  python main.py diffing/method=normdiff                     how far activations moved, layer by layer
  python main.py --multirun organism=caps,roman_concrete     several runs, one after the other

groups (GROUP=NAME)
{groups}

often used options (all of them: --cfg job)
  organism_variant=NAME                  another finetuned model of the organism
  organism.amplification=2               scale what finetuning changed: a factor, a preset (late_only, …), a file
  pipeline.mode=full|preprocessing|diffing|report|cache|benchmark
                                         everything; activations only; methods only; one report of a pair; list caches;
                                         methods on organisms whose change is known (benchmark.size=quick)
  preprocessing.layers=[0.5]             layers to store: numbers, shares of the depth, or all
  preprocessing.store=disk|live          keep activations for other methods, or read the models as they run
  cache.action=list|verify|delete        with pipeline.mode=cache; cache.name=NAME chooses one
  pipeline.methods=[kl,…]                several methods in one process
  data.max_tokens=N  data.max_length=N   how much text: tokens per dataset, tokens per document
  data=custom data.path=FILE             your own text (jsonl, parquet, csv, txt)
  model.dtype=bfloat16                   compute type; also device_map, attn_implementation, quantization, revision
  pair.sharing=adapter|merged|separate   how the two models share memory
  null_pair=identical|dtype|generic|generic_other|seeds
                                         what the method says where nothing was taught
  stability=true                         what of the ranking comes back on half the text, and with another seed
  infrastructure.storage.base_dir=DIR    where results go (./outputs)
  overwrite=true                         compute again what is finished
  seed=N

flags
  --multirun, -m    values with commas become separate runs
  --cfg job         print the composed configuration; --cfg job --package model prints a part
  --info            versions, folders, names of models and organisms (--info config|defaults|…: Hydra's)
  --config-dir DIR  add configurations of your own (DIR/model/mine.yaml, …)

exit codes: 0 done, 1 a fault of ours, 2 something you can mend, 130 interrupted"""


def config_dir_of(argv: list[str]) -> str | None:
    """The folder given with --config-dir, or None."""
    for i, argument in enumerate(argv):
        if argument in ("--config-dir", "-cd") and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith("--config-dir="):
            return argument.partition("=")[2]
    return None


def group_lines(config_dir: str | None) -> str:
    """The groups and what they offer, a line each."""
    lines = []
    for group in GROUPS:
        names = choices(group, config_dir)
        shown = ", ".join(names[:14]) + (f", … ({len(names)} in all: --info)" if len(names) > 14 else "")
        lines.append(f"  {group}: {shown}")
    return "\n".join(lines)


def is_plain_info(argv: list[str]) -> bool:
    """Whether --info stands alone, without one of Hydra's subjects."""
    flags = {"--info", "-i"}
    if not flags & set(argv):
        return False
    after = argv[next(i for i, a in enumerate(argv) if a in flags) + 1 :]
    return not after or "=" in after[0] or after[0].startswith("-")


def print_info(config_dir: str | None) -> None:
    """Versions, folders, and the names of everything that can be chosen."""
    facts = machine()
    print("versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print(f"source: {git_state() or 'installed package'}")
    print(f"machine: {facts['system']} {facts['machine']}, {facts['cores']} cores")
    print(f"cache folder (DIFFING_CACHE): {cache_dir()}")
    print(f"methods: {', '.join(method_names())}; planned: {', '.join(m for m in PLANNED if m not in method_names())}")
    for group in GROUPS:
        print(f"{group}: {', '.join(choices(group, config_dir))}")
    print("options: python main.py --cfg job")
