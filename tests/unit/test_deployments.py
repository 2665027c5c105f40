"""prefect.yaml, read strictly and offline: what it says is what will run, when it may."""

from pathlib import Path

import pytest

from deployments.register import WORK_POOL
from tests.prefect_file import Deployment, faults, read

TEXT = (Path(__file__).parents[2] / "prefect.yaml").read_text()
DEPLOYMENTS = read(TEXT).deployments


def test_nothing_is_wrong_with_prefect_yaml():
    assert faults(TEXT) == []


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: f"{d.entrypoint}/{d.name}")
def test_each_deployment_names_a_flow_and_its_pool(deployment: Deployment):
    assert deployment.flow().name == deployment.entrypoint.rpartition(".")[2].replace("_", "-")
    assert deployment.work_pool.name == WORK_POOL


def test_a_backup_runs_every_night_and_a_physical_one_every_week():
    kinds = [d for d in DEPLOYMENTS if d.schedules and "kind" in d.parameters]
    fires = {d.parameters["kind"]: d.schedules[0].fires() for d in kinds}
    assert len(fires["logical"]) == 365
    assert len(fires["physical"]) == 52


BROKEN = [
    ("a misspelt limit", "concurrency_limit: *", "concurency_limit: *", "concurency_limit: Extra"),
    ("a misspelt top-level key", "\ndeployments:", "\ndeployment:", "deployment: Extra"),
    ("a misspelt limit of the limit", "    limit: 1", "    limt: 1", "concurrency_limit.limt: Extra"),
    ("an unknown strategy", "ENQUEUE", "enqueue", "collision_strategy: Input should be"),
    ("a limit of nothing", "    limit: 1", "    limit: 0", "greater than or equal to 1"),
    ("a misspelt pool", "name: onevault\n    job", "name: onevalt\n    job", "not 'onevalt'"),
    ("a misspelt key of the pool", "job_variables: {}", "job_varables: {}", "job_varables: Extra"),
    ("a misspelt key of a schedule", "timezone: *", "timezon: *", "timezon: Extra"),
    ("an unknown zone", "zone UTC", "zone Mars/Olympus", "not an IANA time zone"),
    ("six cron fields", '"30 1 * * *"', '"0 30 1 * * *"', "does not have 5 fields"),
    ("no cron line", '"30 1 * * *"', '"30 25 * * *"', "Invalid cron string"),
    ("a schedule that never fires", '"30 1 * * *"', '"30 1 31 2 *"', "nightly never fires"),
    ("a schedule outside the window", '"30 1 * * *"', '"30 6 * * *"', "outside its window"),
    ("a schedule at the window's end", '"30 1 * * *"', '"0 5 * * *"', "outside its window"),
    ("one night of the year outside", "nightly_window daily", "nightly_window mon-sat", "52 times"),
    ("a window of another day", "weekly_window sun", "weekly_window sat", "outside its window"),
    ("an hour that may be skipped", "zone UTC", "zone Europe/Berlin", "between 01:00 and 03:00"),
    ("summer time outside the window", "zone UTC", "zone Europe/London", "outside its window"),
    ("no window", "window: *nightly_window", "verify: true", "needs a window"),
    ("an open window", "&nightly_window daily 01:00-05:00 UTC", "&nightly_window always", "needs a"),
    ("an unreadable window", "daily 01:00", "nightly 01:00", "is not a maintenance window"),
    ("no limit", "    concurrency_limit: *one_at_a_time\n", "", "needs a concurrency_limit"),
    ("a path entrypoint", "flows.schema.migrate", "flows/schema.py:migrate", "should match pattern"),
    ("a module that is not there", "flows.schema.", "flows.schemata.", "ModuleNotFoundError"),
    ("a flow that is not there", ".migrate_schema", ".migrate_scheme", "migrate_scheme"),
    ("a function that is no flow", "schema.migrate_schema", "backup.cast", "flows.backup.cast/ad-hoc"),
    ("a misspelt parameter", "      server: default", "      sever: default", "SignatureMismatchError"),
    ("a misspelt option", "window: *nightly", "windw: *nightly", "options.windw"),
    ("a value out of range", "kind: logical", "kind: logicall", "'logical' or 'physical'"),
    ("no description", "    description: Brings", "    descripton: Brings", "description: Field required"),
    ("a name that is no name", "name: weekly-physical", "name: Weekly Physical", "match pattern"),
    ("the same name twice", "name: nightly", "name: weekly-physical", "stands twice"),
    ("the same key twice", "kind: physical", "kind: physical\n      kind: logical", "stands twice"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "fault"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_mistake_is_reported(old: str, new: str, fault: str):
    assert old in TEXT
    found = faults(TEXT.replace(old, new))
    assert any(fault in line for line in found), found


def test_a_required_parameter_may_be_left_to_whoever_starts_an_unscheduled_run():
    verify = next(d for d in DEPLOYMENTS if d.entrypoint == "flows.backup.verify_backup")
    assert "backup_id" in verify.flow().parameters.required
    assert "backup_id" not in verify.parameters


def test_a_required_parameter_may_not_be_left_out_on_a_schedule():
    schedule = 'schedules:\n      - {slug: now, cron: "30 4 * * *", timezone: UTC}'
    before, verify, after = TEXT.partition("entrypoint: flows.backup.verify_backup")
    found = faults(before + verify + after.replace("schedules: []", schedule, 1))
    assert any("backup_id: Field required" in line for line in found), found


def test_the_file_is_read_whole():
    assert len(DEPLOYMENTS) == TEXT.count("entrypoint:")
