"""Which of a model's tensors train, and the optimizer over them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor
from tinygrad.helpers import Context as TinygradContext
from tinygrad.nn.state import get_state_dict

from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.formatting import is_number, shown
from gemma4_core.ops.graphs import CapturedGraph
from gemma4_core.plugins import registry
from gemma4_core.plugins.options import refuse_unknown
from gemma4_core.training.gradients import set_gradients
from gemma4_core.training.programs.compiling import Programs
from gemma4_core.training.programs.steps import Steps
from gemma4_core.training.programs.updates import Update
from gemma4_core.weights import DenseMatrix, DenseStack, Matrix

if TYPE_CHECKING:
    from gemma4_core.contracts import OptimizerBackend
    from gemma4_core.model.model import GemmaModel

OWN = ("lr", "weight_decay", "trainable", "frozen", "optimizer", "model")
"""What ``build_optimizer`` takes itself."""
NEVER_TRAINED = (
    "*.layer_scalar", "*.input_min", "*.input_max", "*.output_min", "*.output_max", "*.std_bias", "*.std_scale",
)
"""Buffers, not parameters, of the reference (transformers 5.23.0, ``models/gemma4/modeling_gemma4.py``)."""


class TrainingOptimizer:
    """An optimizer plugin's object with the tensors that it updates, by full checkpoint name."""

    def __init__(self, inner: Any, named_params: Mapping[str, Tensor], frozen: Mapping[str, int], name: str) -> None:
        self.inner, self.name = inner, name
        self.named_params = dict(named_params)
        self.frozen = dict(frozen)
        """Numbers of elements of the tensors that stay as they are, by name."""
        self.memory_limit: int | None = None
        """Bytes of device memory that training may use; None is what is free, of which layers take a part."""
        self.taken = 0
        """Steps that were taken, those before a state that was loaded included where it counts them."""
        self._steps: Steps | None = None
        self._updates: dict[object, Update | CapturedGraph] = {}
        self.gradient_norm: Tensor | None = None
        """Global norm of the last step's gradients before it was limited, where it was."""

    @property
    def params(self) -> list[Tensor]:
        return list(self.named_params.values())

    @property
    def summary(self) -> str:
        """What trains and what does not, on one line."""
        trained = sum(p.numel() for p in self.params)
        still = f"{len(self.frozen)} tensors ({sum(self.frozen.values()):,} parameters) stay as they are"
        return f"{self.name}: {len(self.params)} tensors ({trained:,} parameters) train, {still}"

    def __repr__(self) -> str:
        return f"<{self.summary}>"

    def steps(self, model: GemmaModel) -> Steps:
        """The passes of a model that train these parameters."""
        if self._steps is None or self._steps.model is not model:
            self._steps = Steps(model, self.named_params)
        self._steps.memory_limit = self.memory_limit
        return self._steps

    @property
    def shapes(self) -> int:
        """Different shapes of batches that steps were linked for so far."""
        return 0 if self._steps is None else len(self._steps.passes)

    def update(self, gradients: Mapping[str, Tensor], max_norm: float | None) -> Tensor | None:
        """Take a step from realized gradients by name, limited to a global norm where one is given; the norm before."""
        if not hasattr(self.inner, "schedule_step"):
            norm = set_gradients(self.inner, self.named_params, gradients, max_norm)
            norm = None if norm is None else norm.contiguous().realize()
            self.step()
            self.zero_grad()
            return norm
        key = (tuple((name, id(g.uop.base)) for name, g in gradients.items()), max_norm is not None)
        if hasattr(self.inner, "kind"):
            known = self._updates.get(key)
            if not isinstance(known, Update) or known.stale():
                programs, limited = self._programs(gradients), max_norm is not None
                known = Update(self.inner, self.named_params, programs, gradients, limited)
                self._updates[key] = known
            norm = known(max_norm)
        else:
            norm = self._whole(key, gradients, max_norm)
        return None if norm is None else norm.detach().clone().realize().reshape(())

    def _programs(self, gradients: Mapping[str, Tensor]) -> Programs:
        return self._steps.programs if self._steps is not None else Programs(str(next(iter(gradients.values())).device))

    def _whole(self, key: object, gradients: Mapping[str, Tensor], max_norm: float | None) -> Tensor | None:
        """The update of an optimizer whose rule is not told for each tensor, as one graph."""

        def finish() -> Tensor | None:
            with TinygradContext(TRAINING=1):
                norm = set_gradients(self.inner, self.named_params, gradients, max_norm)
                changed = self.inner.schedule_step()
                self.zero_grad()
                Tensor.realize(*changed)
                return norm

        known = self._updates.get((key, max_norm))
        if not isinstance(known, CapturedGraph):
            known = self._updates[key, max_norm] = CapturedGraph(finish)
        norm: Tensor | None = known()
        return norm

    def step(self) -> None:
        """Update the parameters from their ``.grad``."""
        with TinygradContext(TRAINING=1):
            self.inner.step()

    def zero_grad(self) -> None:
        """Forget gradients."""
        self.inner.zero_grad()
        for param in self.params:
            param.grad = None

    def set_lr(self, lr: float) -> None:
        """Change the learning rate, also of linked steps. Raises InputError for an optimizer without ``lr``."""
        if not is_number(lr) or lr < 0:
            raise InputError(f"lr {shown(lr)}: must be a finite number from 0")
        held = self.rates
        if not held:
            raise InputError(f"optimizer {self.name} has no lr that can be changed")
        for owner in held:
            if isinstance(owner.lr, Tensor):
                rate = owner.lr
                rate.assign(Tensor.full(rate.shape, lr, dtype=rate.dtype, device=rate.device).contiguous()).realize()
            else:
                owner.lr = lr

    @property
    def rates(self) -> list[Any]:
        """The objects that hold a learning rate: the optimizer, or the members of a group."""
        return [o for o in getattr(self.inner, "optimizers", [self.inner]) if hasattr(o, "lr")]

    @property
    def lr(self) -> float | None:
        """The learning rate, None where the optimizer does not show it."""
        if not self.rates:
            return None
        rate = self.rates[0].lr
        return float(rate.numpy().reshape(-1)[0]) if isinstance(rate, Tensor) else float(rate)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's state, by flat name; the parameters themselves are not in it."""
        if hasattr(self.inner, "state_dict"):
            return dict(self.inner.state_dict())
        own = {id(p) for p in self.params}
        return {name: t for name, t in get_state_dict(self.inner, tensor_type=Tensor).items() if id(t) not in own}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state, in place. Raises InputError where it is another optimizer's."""
        own = self.state_dict()
        check_state(own, {name: tuple(t.shape) for name, t in state.items()}, self.name)
        counts = [float(t.numpy().max()) for key, t in state.items() if key.startswith("steps.")]
        self.taken = int(max(counts, default=0))
        if hasattr(self.inner, "load_state_dict"):
            self.inner.load_state_dict(dict(state))
            return
        for name, tensor in own.items():
            tensor.assign(state[name].to(tensor.device).cast(tensor.dtype).contiguous()).realize()


def check_state(
    own: Mapping[str, Tensor], other: Mapping[str, tuple[int, ...]], name: str, where: str = "load_state_dict"
) -> None:
    """Raise InputError, which begins with ``where``, unless a stored state has the tensors of ours in their shapes."""
    odd = [f"{key} is missing" for key in own if key not in other]
    odd += [f"{key} is unexpected" for key in other if key not in own]
    odd += [
        f"{key} is {list(other[key])} instead of {list(t.shape)}"
        for key, t in own.items() if key in other and tuple(t.shape) != tuple(other[key])
    ]
    if odd:
        more = f" and {len(odd) - 2} more" if len(odd) > 2 else ""
        raise InputError(f"{where}: the state does not fit this {name} optimizer ({'; '.join(odd[:2])}{more}); build "
                         f"it with the same optimizer and the same trainable tensors as when it was saved"[:480])


def build_optimizer(
    model: GemmaModel,
    optimizer: str = "adamw",
    lr: float = 1e-5,
    weight_decay: float = 0.0,
    trainable: Sequence[str] | str | None = None,
    frozen: Sequence[str] | str | None = None,
    **options: Any,
) -> TrainingOptimizer:
    """An optimizer over some or all of the model's tensors.

    Args:
        model: its tensors are updated in place; quantised matrices among the trained ones become ordinary.
        optimizer: name of an optimizer plugin.
        lr: learning rate.
        weight_decay: the plugin says what decays.
        trainable: fnmatch patterns over full checkpoint tensor names; None is all.
        frozen: patterns of tensors that stay as they are, stronger than ``trainable``.
        options: further options of the plugin, such as ``momentum``.

    Raises:
        PluginError: no such optimizer.
        InputError: a pattern matches nothing, nothing trains, or a value does not fit.
    """
    for what, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not is_number(value) or value < 0:
            raise InputError(f"{what} {shown(value)}: must be a finite number from 0")
    backend = registry.select("optimizer", model.context, optimizer)
    check_names(backend, options)
    sizes = candidates(model)
    names = choose(sizes, patterns(trainable, "trainable"), patterns(frozen, "frozen"))
    named = own_tensors(model, names)
    with TinygradContext(TRAINING=1), plain_errors(backend.name):
        inner = backend.build(dict(named), lr=lr, weight_decay=weight_decay, **options)
    return TrainingOptimizer(inner, named, untrained(model, sizes, named), backend.name)


def check_names(backend: OptimizerBackend, options: Mapping[str, Any]) -> None:
    """Raise InputError for an option that the optimizer does not take; one that takes any name judges it itself."""
    try:
        parameters = inspect.signature(backend.build).parameters.values()
    except (TypeError, ValueError):  # a class or function of C
        return
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OWN]
    for name in options:
        if name in OWN:
            raise InputError(f"optimizer {backend.name}: {name} is not among the optimizer's own options; give it "
                             f"as --{name.replace('_', '-')} ({name}=)")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        refuse_unknown(f"option of optimizer {backend.name}", options, known)


def check_options(backend: OptimizerBackend, options: Mapping[str, Any]) -> None:
    """Raise InputError for options that the optimizer does not take, before a model is loaded: it is built over one
    small matrix."""
    check_names(backend, options)
    with suppress_but(InputError), TinygradContext(TRAINING=1, PARALLEL=0, BEAM=0):
        probe = {"model.language_model.layers.0.mlp.down_proj.weight": Tensor.zeros(2, 2, device="PYTHON").contiguous()}
        backend.build(probe, lr=0.0, weight_decay=0.0, **options)


@contextmanager
def suppress_but(kind: type[Exception]) -> Iterator[None]:
    """Drop exceptions of other kinds: what an optimizer makes of real tensors it says when it gets them."""
    try:
        yield
    except kind:
        raise
    except Exception:
        pass


def untrained(model: GemmaModel, sizes: Mapping[str, int], named: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of elements of the tensors that stay as they are."""
    if model.trained_part is not None:
        held = {id(tensor) for tensor in named.values()}
        sizes = {n: int(t.numel()) for n, t in model.named_tensors().items() if id(t) not in held} | dict(sizes)
    return {name: size for name, size in sizes.items() if name not in named}


@contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """A plugin's complaint about its arguments as an error of one line."""
    try:
        yield
    except Gemma4Error:
        raise
    except (TypeError, ValueError, AssertionError) as fault:
        raise InputError(f"optimizer {name} cannot be built: {' '.join(str(fault).split())[:300]}") from fault


def candidates(model: GemmaModel) -> dict[str, int]:
    """Numbers of elements of every tensor by the name under which it may be chosen; a quantised matrix is one.

    Where a transform says what trains, these are its tensors alone.
    """
    if model.trained_part is not None:
        return {name: int(tensor.numel()) for name, tensor in model.trained_part.tensors.items()}
    found: dict[str, int] = {}
    for name, place in model.places.items():
        parts = place.matrix.parts()
        if "" not in parts or parts[""].is_floating_point():
            found |= {name + suffix: int(t.numel()) for suffix, t in parts.items() if t.is_floating_point()}
        else:
            found[name] = math.prod(place.matrix.shape)
    for tensors in (model.tensors, *(tower.parameters() for tower in model.towers.values())):
        found |= {name: int(t.numel()) for name, t in tensors.items() if t.is_floating_point()}
    return found


def patterns(given: Sequence[str] | str | None, what: str) -> list[str] | None:
    """Patterns as a list; one alone may come as plain text."""
    if given is None:
        return None
    found = [given] if isinstance(given, str) else list(given)
    for pattern in found:
        if not isinstance(pattern, str):
            raise InputError(f"{what}: {pattern!r} is not a pattern such as '*.mlp.*'")
    return found


def choose(names: Mapping[str, int], trainable: list[str] | None, frozen: list[str] | None) -> list[str]:
    """The names that train, in order. Raises InputError for a pattern without a match, and where nothing is left."""
    for what, given in (("trainable", trainable), ("frozen", frozen)):
        for pattern in given or []:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(f"{what} {shown(pattern)} matches no tensor of the model; names look like "
                                 f"{next(iter(names))}")

    def matches(name: str, given: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in given)

    wanted = [n for n in names if trainable is None or matches(n, trainable)]
    chosen = [n for n in wanted if not matches(n, NEVER_TRAINED) and not matches(n, frozen or [])]
    if not chosen:
        still = "are never trained" if wanted and all(matches(n, NEVER_TRAINED) for n in wanted) else "are frozen"
        raise InputError(f"nothing would train: the {len(wanted)} tensors that trainable "
                         f"{shown(trainable) if trainable is not None else 'allows'} names {still}")
    return chosen


def own_tensors(model: GemmaModel, names: Sequence[str]) -> dict[str, Tensor]:
    """The chosen tensors, ready to be updated in place: quantised ones made ordinary, mapped files copied."""
    part = model.trained_part
    for name in names if part is None else ():
        place = model.places.get(name)
        if place is not None and not place.matrix.parts()[""].is_floating_point():
            dense = place.matrix.dense().contiguous().realize()
            place.matrix = DenseMatrix(dense) if isinstance(place.matrix, Matrix) else DenseStack(dense)
    every = model.named_tensors() if part is None else part.tensors
    named = {name: every[name] for name in names}
    for tensor in named.values():
        if str(tensor.device).split(":")[0] == "CPU":
            # a checkpoint's file may lie under it: another program's changes to the file would show
            tensor.replace(tensor.clone().realize())
    model.invalidate()
    return named
