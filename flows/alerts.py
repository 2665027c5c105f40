"""Alert rules, evaluated on what the vault holds."""

from typing import cast

from prefect import flow
from prefect.states import Completed, Failed

from tasks.alerts import loading
from tasks.alerts import tasks as alerting
from tasks.alerts.models import Evaluation
from tasks.errors import OneVaultError
from tasks.metrics import tasks as metrics


@flow(name="evaluate-alerts", flow_run_name="evaluate alerts", persist_result=False)
def evaluate_alerts(servers: list[str] | None = None) -> Evaluation:
    """Evaluate every rule once, on these servers or on all; what changed is in the vault, the log and the events.

    The collector does this itself each time it has stored samples. This is for asking now, and for noticing that no
    collector is at work: readings that are too old become alerts.
    """
    try:
        ruleset = loading.load(metrics.metrics_catalog().families)
        watched = [target.name for target in metrics.ServerList(servers).demand()]
        found = alerting.evaluate(ruleset, watched)
    except OneVaultError as error:
        return cast("Evaluation", Failed(message=str(error), data=error))
    sentence = f"{found.open_alerts} alerts are open on {found.servers} servers; {len(found.transitions)} changed now"
    return cast("Evaluation", Completed(message=sentence, data=found))
