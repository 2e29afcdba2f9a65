"""PyTorch's optimizers with the published code's weight decay, and Diode, as Keras optimizers."""

import types
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from larq_adambnn import kernels
from larq_adambnn.arguments import (
    FLAG,
    TEXT,
    Kind,
    either,
    expect,
    function,
    instance,
    number,
    optional,
    whole,
)
from larq_adambnn.kernels.arithmetic import add_scaled, sums_by_channel

__all__ = [
    "SGD",
    "Adam",
    "Diode",
    "RMSprop",
    "assigned",
    "build",
    "inner",
    "is_legacy",
    "iterations",
    "parts",
    "published_decay",
    "raised",
    "reset",
    "settings",
]


def published_decay(variable: tf.Variable) -> bool:
    """Whether the published code decays a variable.

    Its rule takes 4-D parameters and names with "conv": every convolution kernel,
    the real ones too, and the shifts of RSign and RPReLU (stored there as
    1 x C x 1 x 1).  Not batch norm, slopes or the classifier.
    """
    return variable.shape.rank == 4 or "shift" in variable.name.rsplit("/", 1)[-1]


def raised(gradient: tf.Tensor, weights: tf.Tensor, share: float) -> tf.Tensor:
    """A gradient that is scaled up where it is small (OvSW, arXiv 2407.05257).

    In each output channel its norm is at least `share` times that of the weights.  As published,
    a norm of the gradient below 1e-6 counts as that, and one of the weights below 1e-3 as that.

    Args:
        gradient, weights: of a kernel, output channels on the last axis; a depthwise kernel with
            a multiplier of 1 is one channel.
        share: 0.01 on ImageNet, 0.04 on CIFAR in the paper.

    Returns:
        Tensor of the gradient's shape and dtype.
    """
    squares = sums_by_channel(tf.square(gradient), tf.square(weights))
    of_gradient, of_weights = map(tf.sqrt, squares)
    least = share * tf.maximum(of_weights, 1e-3)
    return gradient * tf.maximum(least / tf.maximum(of_gradient, 1e-6), 1.0)


def inner(optimizer):
    """What a LossScaleOptimizer wraps; any other optimizer is itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def parts(optimizer) -> list:
    """The optimizers that Larq's CaseOptimizer hands the variables to; any other is the one."""
    optimizer = inner(optimizer)
    return list(getattr(optimizer, "optimizers", [optimizer]))


def assigned(optimizer, variables: Sequence[tf.Variable]) -> list[tuple]:
    """(part, its variables) for each of the `parts` of an optimizer that is to update some."""
    optimizer = inner(optimizer)
    if not hasattr(optimizer, "pred_opt_pairs"):
        return [(optimizer, list(variables))]
    found, left = [], list(variables)
    for claims, part in optimizer.pred_opt_pairs:
        found.append((part, [variable for variable in left if claims(variable)]))
        left = [variable for variable in left if not claims(variable)]
    return [*found, (optimizer.default, left)] if optimizer.default else found


def is_legacy(optimizer) -> bool:
    """Whether it is one of Keras's legacy optimizers, as Larq's are too."""
    return isinstance(optimizer, tf.keras.optimizers.legacy.Optimizer)


def build(optimizer, variables: Sequence[tf.Variable]) -> None:
    """Makes every variable that an optimizer of any kind needs to update some, if need be."""
    for part, own in assigned(optimizer, variables):
        make = part._create_all_weights if is_legacy(part) else part.build
        make(own)


def reset(optimizer, variables: Sequence[tf.Variable]) -> None:
    """Gives every variable of an optimizer of any kind its initial value.

    The learning rate and the weight decay stay as they are.
    """
    for part, own in assigned(optimizer, variables):
        fresh = type(part).from_config(settings(part))
        build(part, own)
        build(fresh, own)
        pairs = zip(_variables(part), _variables(fresh), strict=True)
        for variable, initial in pairs:
            variable.assign(initial)


def iterations(optimizer) -> int:
    """How many it has done; one of several may have no variables and count nothing."""
    return max(int(part.iterations.numpy()) for part in parts(optimizer))


def settings(optimizer) -> dict:
    """What the `from_config` of an optimizer's class takes, in Python's own types."""
    return optimizer.settings() if isinstance(optimizer, _Groups) else optimizer.get_config()


def _variables(optimizer) -> list[tf.Variable]:
    return optimizer.variables() if is_legacy(optimizer) else optimizer.variables


_RATE = either(
    number(0), instance(tf.keras.optimizers.schedules.LearningRateSchedule, "a Keras schedule")
)


_RATES = Kind(
    "{beginning of a variable's name: finite number of at least 0}",
    lambda v: (
        isinstance(v, Mapping) and all(map(TEXT.fits, v)) and all(map(number(0).fits, v.values()))
    ),
)


class _Groups:
    """Adds a settable `weight_decay` of selected variables, and learning rates of their own.

    Coupled decay (PyTorch's `weight_decay`) adds ``weight_decay * w`` to the gradient
    before anything else; decoupled decay (AdamW) subtracts
    ``learning_rate * weight_decay * w`` from the weight.  The learning rate is that of the
    variable, as in PyTorch's parameter groups.

    What OvSW (arXiv 2407.05257) does comes before the decay, to the gradients of kernels that are
    binary now: `raised`, and a decay of its own for silent weights.
    """

    @staticmethod
    def _check(learning_rate, weight_decay, decays):
        expect("learning_rate", learning_rate, _RATE)
        expect("weight_decay", weight_decay, number())
        expect("decays", decays, function)

    def _set_up(self, weight_decay, decoupled, decays, rates, ovsw):
        gradient_floor, silent_decay, silent_iterations = ovsw
        expect("gradient_floor", gradient_floor, number(0))
        expect("silent_decay", silent_decay, number(0))
        expect("silent_iterations", silent_iterations, whole(1))
        self.gradient_floor, self.silent_decay = float(gradient_floor), float(silent_decay)
        self.silent_iterations = int(silent_iterations)
        self.weight_decay = tf.Variable(
            weight_decay, dtype=tf.keras.backend.floatx(), trainable=False, name="weight_decay"
        )
        self.decoupled = decoupled
        self.decays = decays
        expect("rates", rates, optional(_RATES))
        self.rates = types.MappingProxyType(dict(rates or {}))  # a dict would be tracked and saved

    def build(self, var_list):
        super().build(var_list)
        if self.silent_decay and not hasattr(self, "_flips"):
            kernels = [variable for variable in var_list if hasattr(variable, "precision")]
            self._flips, self._signs = (
                [self.add_variable_from_reference(kernel, name) for kernel in kernels]
                for name in ("flips", "signs")
            )
            self._slot = [self._var_key(kernel) for kernel in kernels].index
        for beginning in self.rates if var_list else ():
            if not any(variable.name.startswith(beginning) for variable in var_list):
                raise ValueError(
                    "Expected rates of beginnings of the trainable variables' names, such as "
                    f"{var_list[0].name}. Received: {beginning!r}, which fits none"
                )

    def _rate(self, variable) -> float:
        """How many times the learning rate a variable has: by the longest beginning that fits."""
        fitting = [beginning for beginning in self.rates if variable.name.startswith(beginning)]
        return self.rates[max(fitting, key=len)] if fitting else 1.0

    def _learning_rate_of(self, variable, dtype) -> tf.Tensor:
        learning_rate, rate = self._shared(dtype)["learning_rate"], self._rate(variable)
        return learning_rate if rate == 1 else rate * learning_rate

    def _apply_weight_decay(self, variables):
        """Keras's own decay, which would come on top."""

    def aggregate_gradients(self, grads_and_vars):
        """Sums over the replicas; with one, Keras would copy every gradient instead."""
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return grads_and_vars
        return super().aggregate_gradients(grads_and_vars)

    def _distributed_apply_gradients_fn(self, distribution, grads_and_vars, **kwargs):
        """Computes once an iteration, and not once a variable, what the updates share."""
        scalars = {dtype: self._scalars(dtype) for dtype in {v.dtype for _, v in grads_and_vars}}
        self._shared = scalars.__getitem__  # a dict would be tracked and saved
        # The copies of a variable on several devices have no precision.
        self._binary = frozenset(
            self._var_key(v) for _, v in grads_and_vars if getattr(v, "precision", 32) == 1
        )
        return super()._distributed_apply_gradients_fn(distribution, grads_and_vars, **kwargs)

    def _scalars(self, dtype: tf.DType) -> dict[str, tf.Tensor]:
        """What the updates of an iteration share, by name."""
        return {
            # tf.cast leaves a variable of that dtype a variable, which each update would read.
            "learning_rate": tf.cast(tf.convert_to_tensor(self.learning_rate), dtype),
            "weight_decay": tf.cast(tf.convert_to_tensor(self.weight_decay), dtype),
        }

    def _is_binary(self, variable) -> bool:
        """Whether it is a kernel that the network uses in 1 bit now."""
        return self._var_key(variable) in self._binary

    def _awakened(self, gradient, variable):
        """The gradient of a binary kernel, for the weights that do not change their sign."""
        weights = tf.convert_to_tensor(variable)
        if self.gradient_floor:
            gradient = raised(gradient, weights, self.gradient_floor)
        if self.silent_decay:
            slot = self._slot(self._var_key(variable))
            signs = tf.where(weights >= 0, tf.ones_like(weights), -tf.ones_like(weights))
            flipped = tf.cast(self._signs[slot] * signs < 0, weights.dtype)
            share = 1 / self.silent_iterations
            flips = self._flips[slot] + share * (flipped - self._flips[slot])
            self._flips[slot].assign(flips)
            self._signs[slot].assign(signs)
            decay = self.silent_decay * weights
            gradient += tf.where(flips < 0.1 * share, decay, tf.zeros_like(decay))
        return gradient

    def _decayed(self, gradient, variable):
        """The gradient to use, after the variable's decay."""
        gradient = tf.convert_to_tensor(gradient)
        if (self.gradient_floor or self.silent_decay) and self._is_binary(variable):
            gradient = self._awakened(gradient, variable)
        if not self.decays(variable):
            return gradient
        shared = self._shared(gradient.dtype)
        if not self.decoupled:
            return add_scaled(gradient, shared["weight_decay"], variable)
        decay = shared["weight_decay"] * variable
        decay *= self._learning_rate_of(variable, gradient.dtype)
        with tf.control_dependencies([variable.assign_sub(decay)]):
            return tf.identity(gradient)

    def settings(self) -> dict:
        """What `from_config` takes; unlike `get_config`, with `decays` as it is."""
        config = super().get_config()
        for name in ("adaptive_epsilon", "jit_compile"):
            config.pop(name, None)
        if self.rates:
            config["rates"] = dict(self.rates)
        if self.gradient_floor:
            config["gradient_floor"] = self.gradient_floor
        if self.silent_decay:
            config["silent_decay"] = self.silent_decay
            config["silent_iterations"] = self.silent_iterations
        return {
            **config,
            "weight_decay": float(self.weight_decay.numpy()),
            "decays": self.decays,
        }

    def get_config(self):
        config = self.settings()
        rule = config.pop("decays")
        if rule is not published_decay:
            config["decays"] = _name_of(rule)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        rule = config.get("decays")
        if isinstance(rule, str):
            config = {**config, "decays": _named(rule, custom_objects)}
        return super().from_config(config, custom_objects)


def _name_of(rule: Callable) -> str:
    """What a saved optimizer calls a rule of `decays`."""
    name = getattr(rule, "__name__", "<none>")
    if name.startswith("<"):
        raise ValueError(
            "Expected decays to be a named function, which a saved optimizer finds again (see "
            f"tf.keras.utils.register_keras_serializable). Received: decays={rule!r}"
        )
    return tf.keras.utils.get_registered_name(rule)


def _named(name: str, custom_objects: dict | None) -> Callable:
    found = tf.keras.utils.get_registered_object(name, custom_objects)
    if found is None:
        raise ValueError(
            f"Expected {name}, the saved optimizer's decays, to be registered (see "
            "tf.keras.utils.register_keras_serializable) or among custom_objects. Received: neither"
        )
    return found


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Adam(_Groups, tf.keras.optimizers.Adam):
    """Adam with torch.optim.Adam's arithmetic: epsilon after the bias-corrected root.

    Args:
        learning_rate: float or a Keras schedule.
        weight_decay: initial value of the variable `weight_decay`, which callbacks
            may set while training.
        beta_1, beta_2, epsilon, amsgrad: as in torch.optim.Adam.
        decoupled: decay the weights as torch.optim.AdamW does instead of adding the
            decay to the gradient.
        decays: which variables decay; the published rule by default.
        rates: learning rates as multiples of `learning_rate`, by how a variable's name begins;
            the longest beginning counts.  ``{"": 0.1, "classifier/": 1.0}`` trains all but
            the layer `classifier` at a tenth; `backbone.rates` makes such a one.  The weight
            decay stays as it is.
        gradient_floor: the share of `raised`, for the binary kernels of Larq's layers; 0: none.
        silent_decay: coupled decay of their silent weights alone, whose moving average of sign
            changes, 0 at first, is below 0.1 / silent_iterations (OvSW, arXiv 2407.05257): those
            that have not changed yet, or not for 2.3 silent_iterations and more.
        silent_iterations: 1 / (1 - momentum) of that average.
        **kwargs: clipping, EMA and other options of Keras optimizers.

    Raises:
        ValueError: an argument is not what it should be.
    """

    def __init__(
        self,
        learning_rate=1.25e-3,
        weight_decay: float = 0.0,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        decoupled: bool = False,
        decays: Callable[[tf.Variable], bool] = published_decay,
        rates: Mapping[str, float] | None = None,
        gradient_floor: float = 0.0,
        silent_decay: float = 0.0,
        silent_iterations: int = 1000,
        name: str = "Adam",
        **kwargs,
    ):
        self._check(learning_rate, weight_decay, decays)
        for beta, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            expect(beta, value, number(0, below=1))
        expect("epsilon", epsilon, number(0))
        expect("amsgrad", amsgrad, FLAG)
        expect("decoupled", decoupled, FLAG)
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            adaptive_epsilon=True,
            amsgrad=amsgrad,
            name=name,
            jit_compile=False,
            **kwargs,
        )
        ovsw = (gradient_floor, silent_decay, silent_iterations)
        self._set_up(weight_decay, decoupled, decays, rates, ovsw)

    def _scalars(self, dtype):
        iteration = tf.cast(self.iterations + 1, dtype)
        beta_1, beta_2 = tf.constant(self.beta_1, dtype), tf.constant(self.beta_2, dtype)
        beta_2_power = beta_2**iteration
        return {
            **super()._scalars(dtype),
            "beta_1": beta_1,
            "beta_2": beta_2,
            "beta_1_power": beta_1**iteration,
            "beta_2_power": beta_2_power,
            # The kernel divides by sqrt(v) + epsilon and multiplies by the root of
            # the correction; PyTorch adds epsilon after that root.
            "epsilon": tf.constant(self.epsilon, dtype) * tf.sqrt(1 - beta_2_power),
        }

    def update_step(self, gradient, variable):
        gradient = self._decayed(gradient, variable)
        shared = self._shared(gradient.dtype)
        index = self._index_dict[self._var_key(variable)]
        if self.amsgrad and kernels.compiled():
            self._amsgrad_step(gradient, variable, index)
            return
        slots = {"m": self._momentums[index].handle, "v": self._velocities[index].handle}
        update = tf.raw_ops.ResourceApplyAdam
        if self.amsgrad:
            slots["vhat"] = self._velocity_hats[index].handle
            update = tf.raw_ops.ResourceApplyAdamWithAmsgrad
        update(
            var=variable.handle,
            **slots,
            beta1_power=shared["beta_1_power"],
            beta2_power=shared["beta_2_power"],
            lr=self._learning_rate_of(variable, gradient.dtype),
            beta1=shared["beta_1"],
            beta2=shared["beta_2"],
            epsilon=shared["epsilon"],
            grad=gradient,
        )

    def _amsgrad_step(self, gradient, variable, index):
        """What ResourceApplyAdamWithAmsgrad does, which XLA cannot compile."""
        shared = self._shared(gradient.dtype)
        m, v, largest = (
            slots[index] for slots in (self._momentums, self._velocities, self._velocity_hats)
        )
        m.assign_add((gradient - m) * (1 - shared["beta_1"]))
        v.assign_add((tf.square(gradient) - v) * (1 - shared["beta_2"]))
        largest.assign(tf.maximum(largest, v))
        correction = tf.sqrt(1 - shared["beta_2_power"]) / (1 - shared["beta_1_power"])
        rate = self._learning_rate_of(variable, gradient.dtype) * correction
        variable.assign_sub(rate * m / (tf.sqrt(largest) + shared["epsilon"]))

    def settings(self):
        return {**super().settings(), "decoupled": self.decoupled}


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Diode(Adam):
    """Binary kernels by sign descent, without latent weights (Diode, ECCV 2024); else `Adam`.

    ``m = lerp(m, g, 1 - momentum)`` averages the gradients of a binary kernel,
    ``s = lerp(s, -size * learning_rate * sign(m), 1 - memory)`` the signs of these, and
    the kernel holds s, whose sign the network uses (and, by a `ScaledSign`, its mean size in
    each channel).  A kernel that is not binary now is Adam's.

    Args:
        learning_rate, weight_decay: as in `Adam`.
        momentum, memory: as published, for trainings of 100,000 iterations and more.  The memory
            is 1 / (1 - memory) iterations long, and should be half of a short training's.
        size: of s at most, in units of the learning rate; with a rate that falls, what comes
            later counts less.  A weight w that the training begins with keeps its sign for
            ``ln(1 + |w| / (size * learning_rate))`` memories, so that a short training wants
            ``1 / learning_rate``, as --optimizer=diode has; beyond the clip of its sign's
            gradient, 1 as published, a weight would keep its sign for good.
        **kwargs: the other options of `Adam`.

    Raises:
        ValueError: an argument is not what it should be.
    """

    def __init__(
        self,
        learning_rate=1.25e-3,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.99,
        memory: float = 0.9999,
        size: float = 1.0,
        name: str = "Diode",
        **kwargs,
    ):
        expect("momentum", momentum, number(0, below=1))
        expect("memory", memory, number(0, below=1))
        expect("size", size, number(above=0))
        super().__init__(learning_rate, weight_decay, name=name, **kwargs)
        self.momentum, self.memory, self.size = float(momentum), float(memory), float(size)

    def update_step(self, gradient, variable):
        if not self._is_binary(variable):
            super().update_step(gradient, variable)
            return
        gradient = self._decayed(gradient, variable)
        m = self._momentums[self._index_dict[self._var_key(variable)]]
        m.assign_add((1 - self.momentum) * (gradient - m))
        goal = -self.size * self._learning_rate_of(variable, gradient.dtype) * tf.sign(m)
        variable.assign_add((1 - self.memory) * (goal - variable))

    def settings(self):
        own = {name: getattr(self, name) for name in ("momentum", "memory", "size")}
        return {**super().settings(), **own}


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class SGD(_Groups, tf.keras.optimizers.SGD):
    """SGD with torch.optim.SGD's momentum: ``v = momentum * v + g``, ``w -= lr * v``.

    Args:
        learning_rate: float or a Keras schedule.
        weight_decay: as in `Adam`, coupled.
        momentum: 0.9 as the paper's SGD has it.
        decays, rates, gradient_floor, silent_decay, silent_iterations: as in `Adam`.
        **kwargs: clipping, EMA and other options of Keras optimizers.

    Raises:
        ValueError: an argument is not what it should be.
    """

    def __init__(
        self,
        learning_rate=0.05,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.9,
        decays: Callable[[tf.Variable], bool] = published_decay,
        rates: Mapping[str, float] | None = None,
        gradient_floor: float = 0.0,
        silent_decay: float = 0.0,
        silent_iterations: int = 1000,
        name: str = "SGD",
        **kwargs,
    ):
        self._check(learning_rate, weight_decay, decays)
        expect("momentum", momentum, number(0, 1))
        if kwargs.pop("nesterov", False):
            raise ValueError("Expected plain momentum. Received: nesterov=True")
        super().__init__(
            learning_rate=learning_rate, momentum=momentum, name=name, jit_compile=False, **kwargs
        )
        ovsw = (gradient_floor, silent_decay, silent_iterations)
        self._set_up(weight_decay, False, decays, rates, ovsw)

    def update_step(self, gradient, variable):
        gradient = self._decayed(gradient, variable)
        learning_rate = self._learning_rate_of(variable, gradient.dtype)
        if not self.momentum:
            variable.assign_sub(learning_rate * gradient)
            return
        velocity = self.momentums[self._index_dict[self._var_key(variable)]]
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=tf.constant(self.momentum, gradient.dtype),
        )


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class RMSprop(_Groups, tf.keras.optimizers.RMSprop):
    """Keras's RMSprop with coupled weight decay; arguments as `Adam`'s and Keras's."""

    _multiple = 1.0  # of the learning rate, for the variable that is being updated

    def __init__(
        self,
        learning_rate=1e-3,
        weight_decay: float = 0.0,
        *,
        decays: Callable[[tf.Variable], bool] = published_decay,
        rates: Mapping[str, float] | None = None,
        gradient_floor: float = 0.0,
        silent_decay: float = 0.0,
        silent_iterations: int = 1000,
        name: str = "RMSprop",
        **kwargs,
    ):
        self._check(learning_rate, weight_decay, decays)
        super().__init__(learning_rate=learning_rate, name=name, jit_compile=False, **kwargs)
        ovsw = (gradient_floor, silent_decay, silent_iterations)
        self._set_up(weight_decay, False, decays, rates, ovsw)

    @property
    def learning_rate(self):
        rate = super().learning_rate
        return rate if self._multiple == 1 else self._multiple * rate

    @learning_rate.setter
    def learning_rate(self, value):
        tf.keras.optimizers.RMSprop.learning_rate.fset(self, value)

    def update_step(self, gradient, variable):
        gradient = self._decayed(gradient, variable)
        self._multiple = self._rate(variable)
        super().update_step(gradient, variable)
        self._multiple = 1.0
