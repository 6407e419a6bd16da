"""Out of memory: noticed by one process, agreed on by all, so that none waits for another."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator

from tercet.errors import UserError
from tercet.memory import free_memory, is_out_of_memory

Made = TypeVar("Made")


class OutOfMemory(Exception):
    """A process had no room for its part of a step; raised on all of them, at the same place."""


class Room:
    """Whether this process still has room in the present step.

    A process that has run out goes on with stand-ins as far as the next collectives, which the
    others are waiting in, and tells them there.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.out = False
        # A sharded model meets in every layer: there is no place to go on from.
        self.can_go_on = accelerator.num_processes == 1 or not accelerator.is_fsdp2

    def attempt(self, work: Callable[[], Made], stand_in: Callable[[], Made]) -> Made:
        """What `work` makes; `stand_in` makes it from the moment that there is no room."""
        if not self.out:
            try:
                return work()
            except Exception as error:
                self._refuse(error, unless=self.can_go_on)
            # Here the error and the tensors that its frames hold are gone.
            self.out = True
            free_memory(self.accelerator.device)
        if self.accelerator.num_processes == 1:
            raise OutOfMemory
        return stand_in()

    def meet(self, work: Callable[[], object]) -> None:
        """Do `work`, room or not: it holds collectives, from which one process cannot step back."""
        alone = self.accelerator.num_processes == 1
        try:
            work()
        except Exception as error:
            self._refuse(error, unless=alone)
        else:
            return
        free_memory(self.accelerator.device)
        raise OutOfMemory

    def _refuse(self, error: Exception, *, unless: bool) -> None:
        """Raise what is no lack of memory as it is, and UserError for one that ends the run."""
        if not is_out_of_memory(error):
            raise error
        if not unless:
            raise UserError(
                f"process {self.accelerator.process_index} is out of memory where the others "
                "cannot wait for it; lower batch.micro_tokens or batch.keep_tokens, then go on "
                "with --allow-changed batch"
            ) from error

    def raise_if_out(self) -> None:
        """Raise OutOfMemory on every process if one of them has run out. They meet."""
        if self.accelerator.num_processes == 1:
            return  # `attempt` has raised
        here = torch.tensor(float(self.out), device=self.accelerator.device)
        if float(self.accelerator.reduce(here, "sum")) > 0:  # type: ignore[arg-type]
            raise OutOfMemory
