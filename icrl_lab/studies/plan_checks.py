"""Whether a task can have a plan: asked before anything is encoded or loaded."""

from __future__ import annotations

from icrl_lab import maps, prompts, shots
from icrl_lab.answers.formats import FORMATS
from icrl_lab.errors import DataError, StudyError
from icrl_lab.studies.sections import Arm, PlanSpec
from icrl_lab.values import Task


def check(task: Task, plan: PlanSpec) -> None:
    """Raise the DataError or StudyError of a plan that this task cannot have: before anything is encoded or loaded."""
    most = max(plan.shots)
    if most > len(task.pool):
        raise DataError(
            f"task {task.name!r} has {len(task.pool)} items in its pool and the study asks for {most} shots; "
            "use fewer shots or a smaller query_fraction"
        )
    if not len(task.queries):
        raise DataError(f"task {task.name!r} has no item to ask about; its split leaves the query side empty")
    needs_text = [*reads_text(plan), *(a.label for a in plan.asked if a.name == "moments-text")]
    if task.text is None and needs_text:
        raise StudyError(
            f"task {task.name!r} has no text, and {needs_text[0]} needs one; name its text column or leave it out"
        )
    template = prompts.layout(plan.layout, markers=plan.markers)
    for with_text in plan.with_text if any(a.name != "text" for a in plan.arms) else ():
        template.shows("both" if with_text else "vector")
    for key in ("per_token", "calibrate"):
        if getattr(plan, key) and (task.targets is not None or plan.decode != "score" or plan.queries_per_prompt > 1):
            raise StudyError(
                f'{key} changes how classes are scored: it needs a task with labels, decode = "score" and queries_per_prompt = 1'
            )
    if plan.queries_per_prompt > 1 and task.targets is None:
        raise StudyError(
            "several queries a prompt are answered with numbers; a task with labels needs queries_per_prompt = 1"
        )
    if plan.queries_per_prompt > 1 and plan.label_format == "letter":
        raise StudyError(
            "label_format 'letter' is read for one query a prompt; take 'digit', or queries_per_prompt = 1"
        )
    if plan.queries_per_prompt > 1 and any(shots.needs_query(s) for s in (*plan.selection, *plan.order)):
        raise StudyError("shots that depend on the query (nearest, near-last, ...) need queries_per_prompt = 1")
    if plan.queries_per_prompt > 1 and plan.decode == "score":
        raise StudyError(
            f"queries_per_prompt = {plan.queries_per_prompt} asks for several answers in one text, which are generated: "
            "set decode = 'greedy' or 'sample'"
        )
    for arm in plan.asked:
        if maps.NEEDS.get(arm.name) == "labels":
            _check_labels(arm, task, plan)


def reads_text(plan: PlanSpec) -> list[str]:
    """What puts the items' own text into a prompt: arms by name, or the plan's with_text."""
    beside = True in plan.with_text and any(a.name != "text" for a in plan.arms)
    return [a.label for a in plan.arms if a.name == "text"] + ["with_text = true"] * beside


def _check_labels(arm: Arm, task: Task, plan: PlanSpec) -> None:
    """The same for an arm that is fitted on the labels of its shots."""
    if arm.name == "soft-label" and task.targets is None:
        raise StudyError(
            f"the arm {arm.label!r} puts items between two neighbouring labels, and classes have no order; take the arm 'ridge'"
        )
    if arm.name == "soft-label" and not FORMATS[plan.label_format]:
        raise StudyError(
            f"the arm {arm.label!r} puts items between neighbouring labels of a closed set; "
            "take label_format = 'digit', 'letter' or 'two-digit'"
        )
    budget = int(arm.options.get("budget", 0))
    by_query = next((s for s in plan.selection if shots.needs_query(s)), None)
    if by_query:
        raise StudyError(
            f"the arm {arm.label!r} fits one map to the shots, so they cannot be chosen for each query; "
            f"leave out the arm, or the selection {by_query!r}"
        )
    if budget > len(task.pool):
        raise StudyError(f"the arm {arm.label!r} has a budget of {budget} labels, and the pool {len(task.pool)} items")
    if max(min(plan.shots), budget) < 2:
        raise StudyError(
            f"the arm {arm.label!r} is fitted on labels and needs two at least; take more shots, or give it a budget"
        )
