"""Answering the rows of a batch: taken as there is room for them, written as they finish."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gemma4_core.cli.interrupt import Interrupt
from gemma4_core.errors import Gemma4Error
from gemma4_core.generation.scheduler import Running, Scheduler
from gemma4_core.plugins.origin import describe
from gemma4_plugins.commands.batch.bodies import answered, failed
from gemma4_plugins.commands.batch.input_rows import Batch, Fault, Row
from gemma4_plugins.commands.batch.progress import BatchProgress
from gemma4_plugins.commands.batch.row_file import Outputs
from gemma4_plugins.commands.model_loading import model_name

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel

AHEAD = 2
"""Rows that are read and prepared, for each that runs."""


class BatchRun:
    """Answers what is not done yet."""

    def __init__(self, model: LoadedModel, batch: Batch, outputs: Outputs, progress: BatchProgress) -> None:
        self.model, self.batch, self.outputs, self.progress = model, batch, outputs, progress
        self.name = model_name(model.context)
        self.prompt_tokens = 0
        self._running: dict[Running, Row] = {}
        self._rows = self._left()
        self._more = True

    def answer(self, parallel: int | str, context: int | None) -> None:
        """Answer all rows.

        Raises InputError where the slots do not fit, OSError where a row cannot be written, and KeyboardInterrupt after
        Ctrl-C; what was written stays.
        """
        with Scheduler(self.model, parallel, context) as scheduler, Interrupt() as interrupt:
            self.outputs.begin()
            while not interrupt.asked:
                self._submit(scheduler, interrupt)
                if scheduler.idle:
                    break
                for running, _ in scheduler.step():
                    if running.done and running in self._running:
                        self._finish(running, self._running.pop(running))
                self.outputs.sync()
                self.progress.tell(scheduler.stats().generated_tokens)
            if interrupt.asked:
                raise KeyboardInterrupt

    def _left(self) -> Iterator[Row | Fault]:
        """Lines that are not done yet."""
        done, failures = self.outputs.done, frozenset(self.outputs.failed)
        return (line for line in self.batch.again() if line.id not in done and line.id not in failures)

    def _submit(self, scheduler: Scheduler, interrupt: Interrupt) -> None:
        """Hand rows to the scheduler, as many as are to wait."""
        while self._more and len(self._running) < AHEAD * scheduler.parallel and not interrupt.asked:
            line = next(self._rows, None)
            if line is None:
                self._more = False
            elif isinstance(line, Fault):
                self._fail(line.id, line.code, line.message)
            else:
                self._start(scheduler, line)

    def _start(self, scheduler: Scheduler, row: Row) -> None:
        config, template = self.model.generation_config, self.model.template is not None
        try:
            self._running[scheduler.submit(row.request(self.batch.defaults, config, template))] = row
        except Gemma4Error as error:
            self._fail(row.id, "request_failed", f"line {row.number}: {error}")
        except Exception as error:  # one row's prompt or media must not end the others
            self._fail(row.id, "internal_error", f"line {row.number}: {describe(error)}")

    def _finish(self, running: Running, row: Row) -> None:
        error = next((answer.error for answer in running.answers if answer.error is not None), None)
        if error is not None:
            self._fail(row.id, "request_failed", f"line {row.number}: {error}")
            return
        self.prompt_tokens += running.answer.stats.prompt_tokens if running.answer.stats is not None else 0
        self.outputs.write(answered(
            row.id, running.answers, row.logprobs, self.name, int(time.time()), self.model.tokenizer
        ))
        self.progress.row(failed=False)

    def _fail(self, id: str, code: str, message: str) -> None:
        self.outputs.write(failed(id, code, message))
        self.progress.row(failed=True)
