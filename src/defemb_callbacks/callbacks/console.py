"""What a run shows on the console: a few lines through transformers' logging, on the main process only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from defemb_callbacks.progress import Display, shown_on

# A child of transformers' logger: it has the same verbosity, format and handlers, which write to stderr.
logger = transformers_logging.get_logger("transformers.defemb_callbacks")


def show(args: TrainingArguments, state: TrainerState, text: str) -> None:
    """Show a line on the main process, unless `log_level` or transformers' verbosity hides it.

    By default, transformers shows only warnings, so a build of several minutes would be silent. If `log_level` is not
    set, lines are therefore logged as warnings. Otherwise their level is INFO.

    Args:
        args: `log_level` decides.
        state: State of the run.
        text: The line.
    """
    if not state.is_world_process_zero:
        return
    quiet_by_default = args.log_level == "passive" and transformers_logging.get_verbosity() > logging.INFO
    logger.log(logging.WARNING if quiet_by_default else logging.INFO, "%s", text)


@contextmanager
def shown_operations(args: TrainingArguments, state: TrainerState) -> Iterator[Display]:
    """Show the status of long operations inside the block, with bars unless `disable_tqdm` is set.

    Args:
        args: `disable_tqdm` and `log_level` decide.
        state: State of the run.
    """
    main = state.is_world_process_zero
    with shown_on(Display(lambda text: show(args, state, text), bar=main and not args.disable_tqdm)) as display:
        yield display
