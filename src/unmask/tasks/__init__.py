"""Tasks made by program, with answers that can be checked: training data, and a measure of quality.

get_task("wordmath").generate("test", 100) gives problems; .check(problem, text) says whether a text answers one.
"lists" mixes sorts of problems, "lists:shuffle" is one of them. `grammar` is no task of questions but a source of
token sequences whose likelihood is known: see `unmask.tasks.grammar`.
"""

from __future__ import annotations

from unmask.errors import UnmaskError, unknown
from unmask.tasks import lists, wordmath
from unmask.tasks.base import SPLITS, Answer, Problem, Split, Task

__all__ = ["SPLITS", "TASKS", "Answer", "Problem", "Split", "Task", "get_task"]

TASKS = {
    "wordmath": Task("wordmath", wordmath.generate, wordmath.extract_answer, wordmath.check),
    "lists": lists.task("lists", lists.KINDS),
    **{f"lists:{kind}": lists.task(f"lists:{kind}", (kind,)) for kind in lists.KINDS},
}


def get_task(name: str) -> Task:
    """The task of this name; an unknown one raises `UnmaskError` with the nearest name."""
    if name == "grammar":
        raise UnmaskError("grammar asks no questions: it is a source of tokens to train on (see unmask.tasks.grammar)")
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
