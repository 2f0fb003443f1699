"""Writes a method's output to its run folder: tables, tensors, evidence, figures, report, manifest last."""

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
from diffing.models.pair import ModelPair
from diffing.pipeline.planning import Job
from diffing.report.render import write_report


def write_result(
    folder: Path,
    job: Job,
    key: RunKey,
    pair: ModelPair,
    corpus: Corpus,
    output: MethodOutput,
    started: float,
    command: str | None,
) -> Result:
    """Write everything; the manifest comes last, by rename, and only then is the result done."""
    (folder / "manifest.json").unlink(missing_ok=True)
    for stale in ("tables", "tensors", "figures"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    for name, table in output.tables.items():
        write_table(folder / "tables" / f"{name}.parquet", table)
    _write_tensors(folder, output)
    write_evidence(folder / "evidence.json", output.evidence)
    scalars = to_json(Evidence(scalars=output.summary))["scalars"]
    write_json(folder / "summary.json", {"schema": SCHEMA, "scalars": scalars})
    manifest = _manifest(job, key, pair, corpus, output, started, command)
    pending = Result(folder, manifest)
    for name, figure in job.method.figures(pending).items():
        write_text(folder / "figures" / f"{name}.json", figure.to_json())
    write_report(pending, job.method)
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and p.suffix in (".parquet", ".safetensors") and "partial" not in p.parts
    )
    manifest["files"] = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "partial", ignore_errors=True)
    return Result(folder)


def _write_tensors(folder: Path, output: MethodOutput) -> None:
    if output.tensors:
        from safetensors.torch import save

        with atomic_path(folder / "tensors" / "tensors.safetensors") as temporary:
            temporary.write_bytes(save(dict(output.tensors)))


def _manifest(
    job: Job, key: RunKey, pair: ModelPair, corpus: Corpus, output: MethodOutput, started: float, command: str | None
) -> dict[str, Any]:
    config = job.settings.model_dump(mode="json")
    config["diffing"] = {"method": job.options.model_dump(mode="json")}
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
            "base_id": job.pair.model.id,
            "finetuned_id": job.pair.finetuned.id if job.pair.finetuned else job.pair.model.id,
            "fingerprint": pair.fingerprint,
            "facts": pair.facts,
        },
        "data": _data_facts(job, corpus),
        "seed": job.settings.seed,
        "tokens_seen": corpus.n_tokens,
        "wall_seconds": round(time.time() - started, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "git": git_state(),
        "machine": machine(),
        "facts": dict(output.facts),
        "notes": list(dict.fromkeys([*pair.facts["warnings"], *corpus.notes, *output.notes])),
    }


def _data_facts(job: Job, corpus: Corpus) -> Mapping[str, Any]:
    tokens = {name: sum(len(s.ids) for s in corpus.sequences if s.dataset == name) for name in corpus.datasets}
    sequences = {name: sum(s.dataset == name for s in corpus.sequences) for name in corpus.datasets}
    return {
        "datasets": list(corpus.datasets),
        "spec": job.corpus.model_dump(mode="json"),
        "fingerprint": corpus.fingerprint,
        "n_tokens": corpus.n_tokens,
        "tokens": tokens,
        "sequences": sequences,
        "documents": dict(corpus.n_documents),
    }
