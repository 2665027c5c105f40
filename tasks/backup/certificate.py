"""The certificate of proof: what was shown of a backup, for a person and for an auditor."""

from tasks.backup.comparison import TableRow
from tasks.backup.models import Manifest, Outcome, Proof

_SHOWN_FINDINGS = 20
_MARK = {
    Outcome.PASS: "✅ PASS",
    Outcome.FAIL: "❌ FAIL",
    Outcome.PARTIAL: "⚠️ PARTIAL",
    Outcome.NOT_RUN: "⏭️ NOT RUN",
}


def headline(manifest: Manifest, proof: Proof) -> str:
    """Return in one sentence what the verification showed."""
    what = f"{manifest.kind.value} backup {manifest.backup_id} of {_source(manifest)}"
    if proof.outcome is Outcome.FAIL:
        failed = next(rung for rung in proof.rungs.values() if rung.outcome is Outcome.FAIL)
        return f"{what} is NOT proven: {failed.summary}"
    if proof.restore.outcome is not Outcome.PASS:
        return f"{what} was re-read; no restore test was made"
    if proof.comparison.outcome is Outcome.NOT_RUN:
        return f"{what} restores in {proof.restore_seconds or 0:.1f} s; it was not compared with its source"
    partly = " (comparison in part)" if proof.outcome is Outcome.PARTIAL else ""
    return f"{what} restores{partly}: {proof.comparison.summary}; a restore takes {proof.restore_seconds or 0:.1f} s"


def markdown(manifest: Manifest, proof: Proof, location: str) -> str:
    """Return the certificate as Markdown."""
    return "\n".join(
        [
            f"# {_MARK[proof.outcome]} — {manifest.kind.value} backup of {_cell(_source(manifest))}",
            "",
            _cell(headline(manifest, proof)),
            "",
            "| what was looked at | outcome | what it showed | seconds |",
            "| --- | --- | --- | ---: |",
            *(
                f"| {name} | {_MARK[rung.outcome]} | {_cell(rung.summary)} | {rung.seconds:.1f} |"
                for name, rung in proof.rungs.items()
            ),
            "",
            *_findings(proof),
            "| fact | value |",
            "| --- | --- |",
            *(
                f"| {name} | {_cell(value)} |"
                for name, value in facts(manifest, proof, location).items()
            ),
            "",
        ]
    )


def facts(manifest: Manifest, proof: Proof, location: str) -> dict[str, str]:
    """Return the facts an auditor asks for, by name."""
    point = manifest.point
    return {
        "backup": manifest.backup_id,
        "server": f"{manifest.server.name}, PostgreSQL {manifest.server.version}, system identifier {manifest.server.system_identifier}",
        "database": manifest.server.database or "all",
        "shows the state at": f"snapshot {point.snapshot}, LSN {point.lsn}"
        if point.snapshot
        else f"LSN {point.stop_lsn} on timeline {point.timeline}",
        "taken": f"{manifest.started_at:%Y-%m-%d %H:%M:%S} to {manifest.completed_at:%H:%M:%S} UTC with {manifest.tool}",
        "verified": f"{proof.started_at:%Y-%m-%d %H:%M:%S} to {proof.finished_at:%H:%M:%S} UTC",
        "measured restore time (RTO)": f"{proof.restore_seconds:.1f} s"
        if proof.restore_seconds
        else "not measured",
        "stored": f"{manifest.stored_bytes:,} bytes in {len(manifest.objects)} objects at {location}",
        "compressed": f"{manifest.codec} level {manifest.compression_level}, by the {manifest.compressed_by}",
        "encrypted": f"{manifest.cipher}, key {manifest.encryption_key_id}",
        "can be opened by": ", ".join(manifest.recipients),
    }


def table_artifact(rows: list[TableRow]) -> list[dict[str, str | int | None]]:
    """Return the comparison as rows of a table."""
    return [
        {
            "database": row.database,
            "table": row.table,
            "rows in source": row.source_rows,
            "rows restored": row.restored_rows,
            "content": row.content,
        }
        for row in rows
    ]


def _findings(proof: Proof) -> list[str]:
    found = [
        f"{name}: {finding}" for name, rung in proof.rungs.items() for finding in rung.findings
    ]
    if not found:
        return []
    shown = [f"* {_cell(finding)}" for finding in found[:_SHOWN_FINDINGS]]
    more = [f"* and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    return ["## Findings", "", *shown, *more, ""]


def _source(manifest: Manifest) -> str:
    database = manifest.server.database
    return f"{manifest.server.name}/{database}" if database else manifest.server.name


def _cell(text: str) -> str:
    # Names come from databases: they may hold anything, also Markdown and line ends.
    flat = " ".join(text.split())
    return flat.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
