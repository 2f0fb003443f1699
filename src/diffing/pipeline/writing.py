"""Writes a method's output to its run folder: tables, tensors, evidence, figures, report, manifest last."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffing.core.evidence import Evidence, to_json, write_evidence
from diffing.core.files import atomic_path, sha256, write_json, write_text
from diffing.core.method import MethodOutput
from diffing.core.provenance import git_state, machine, now, peak_memory_bytes, versions
from diffing.core.result import Result
from diffing.core.runs import SCHEMA, RunKey
from diffing.core.tables import write_table
from diffing.data.tokens import Corpus
from diffing.pipeline.planning import Job
from diffing.report.render import write_report


def write_result(
    folder: Path,
    job: Job,
    key: RunKey,
    pair_fingerprint: str,
    pair_facts: Mapping[str, Any],
    corpus: Corpus,
    output: MethodOutput,
    started: float,
    command: str | None,
    comparison: str,
) -> Result:
    """Write everything beside the run folder's content, then move it in; the manifest comes last, by rename.

    An older result stays whole until the new one is: moving needs no space.
    """
    staging = folder / ".new"
    shutil.rmtree(staging, ignore_errors=True)
    for name, table in output.tables.items():
        write_table(staging / "tables" / f"{name}.parquet", table)
    _write_tensors(staging, output)
    for name, write in output.folders.items():
        write(staging / "files" / name)
    write_evidence(staging / "evidence.json", output.evidence)
    scalars = to_json(Evidence(scalars=output.summary))["scalars"]
    write_json(staging / "summary.json", {"schema": SCHEMA, "scalars": scalars})
    manifest = _manifest(job, key, pair_fingerprint, pair_facts, corpus, output, started, command)
    manifest["comparison"] = comparison
    pending = Result(staging, manifest)
    for name, figure in job.method.figures(pending).items():
        write_text(staging / "figures" / f"{name}.json", figure.to_json())
    files = sorted(p for p in staging.rglob("*") if p.is_file())
    manifest["files"] = {p.relative_to(staging).as_posix(): sha256(p) for p in files}
    write_report(Result(staging, manifest), job.method)
    write_json(staging / "manifest.json", manifest)
    _move_in(staging, folder)
    shutil.rmtree(folder / "partial", ignore_errors=True)
    return Result(folder)


def _move_in(staging: Path, folder: Path) -> None:
    """Replace what the folder holds by what is staged; without a manifest in between, with it at the end."""
    (folder / "manifest.json").unlink(missing_ok=True)
    for kind in ("tables", "tensors", "figures", "files"):
        shutil.rmtree(folder / kind, ignore_errors=True)
    for path in sorted(staging.iterdir(), key=lambda p: p.name == "manifest.json"):
        os.replace(path, folder / path.name)
    staging.rmdir()


def _write_tensors(folder: Path, output: MethodOutput) -> None:
    if output.tensors:
        from safetensors.torch import save

        with atomic_path(folder / "tensors" / "tensors.safetensors") as temporary:
            temporary.write_bytes(save(dict(output.tensors)))


def _manifest(
    job: Job,
    key: RunKey,
    pair_fingerprint: str,
    pair_facts: Mapping[str, Any],
    corpus: Corpus,
    output: MethodOutput,
    started: float,
    command: str | None,
) -> dict[str, Any]:
    config = job.settings.model_dump(mode="json")
    config["diffing"] = {"method": job.options.model_dump(mode="json")}
    base_id, finetuned_id = job.pair.sources
    return {
        "schema": SCHEMA,
        "method": job.method.name,
        "fingerprint": key.fingerprint,
        "created": now(),
        "command": command,
        "config": config,
        "pair": {
            "model": key.model,
            "organism": key.organism,
            "variant": key.variant,
            "base_id": base_id,
            "finetuned_id": finetuned_id,
            "fingerprint": pair_fingerprint,
            "facts": dict(pair_facts),
        },
        "data": _data_facts(job, corpus),
        "seed": job.settings.seed,
        "tokens_seen": corpus.n_tokens if job.method.reads_corpus else 0,
        "wall_seconds": round(time.time() - started, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "git": git_state(),
        "machine": machine(),
        "facts": dict(output.facts),
        "notes": list(dict.fromkeys([*pair_facts["warnings"], *corpus.notes, *output.notes])),
    }


def _data_facts(job: Job, corpus: Corpus) -> Mapping[str, Any]:
    names = corpus.datasets if job.method.reads_corpus else ()
    tokens = {name: sum(len(s.ids) for s in corpus.sequences if s.dataset == name) for name in names}
    sequences = {name: sum(s.dataset == name for s in corpus.sequences) for name in names}
    return {
        "datasets": list(names),
        "spec": job.corpus.model_dump(mode="json"),
        "fingerprint": corpus.fingerprint,
        "n_tokens": sum(tokens.values()),
        "tokens": tokens,
        "sequences": sequences,
        "documents": {name: corpus.n_documents[name] for name in names if name in corpus.n_documents},
    }
