"""The line as a Prefect flow: from raw text to a registered model, one task a stage.

    sources ─ corpus ─ filter ─ tokenizer ─ pack ─ pretrain ─ evaluate ─ instruct ─ rlhf ─ evaluate ─ release

Each arrow is an artifact in the store (flows/graph.py has them all). The work is done in the main thread (walk.py), so
that signals reach it; the flow's tasks follow it in a thread of their own (prefect_mirror.py), so that a Prefect that
is slow or gone delays none of it. This flow is what a deployment serves; `tokenmill run` shows its run as the same.
"""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.prefect_mirror import FLOW, Mirror, state_of
from flows.run import Run
from flows.walk import walk


@flow(name=FLOW, persist_result=False, validate_parameters=True)
def tokenmill(recipe: str = "demo", overrides: list[str] | None = None, until: str | None = None) -> State:
    """Text to a registered model, as a recipe says.

    Args:
        recipe: a recipe's path, or the name of one that ships.
        overrides: `key=value`, as with --set.
        until: the last stage to run.
    """
    from flows.recipe_read import read_recipe

    run = Run.open(read_recipe(recipe, overrides or ()), until)
    with run.stop:
        try:
            run.start()
            run.watcher = Mirror(run).within_flow()
            return state_of(walk(run))
        finally:
            run.close()
