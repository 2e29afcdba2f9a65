"""PyTorch's Adam with the published code's weight decay, as a Keras optimizer."""

from collections.abc import Callable

import tensorflow as tf

__all__ = ["Adam", "published_decay"]


def published_decay(variable: tf.Variable) -> bool:
    """Whether the published code decays a variable.

    Its rule takes 4-D parameters and names with "conv": every convolution kernel,
    the real ones too, and the shifts of RSign and RPReLU (stored there as
    1 x C x 1 x 1).  Not batch norm, slopes or the classifier.
    """
    return variable.shape.rank == 4 or "shift" in variable.name.rsplit("/", 1)[-1]


@tf.keras.utils.register_keras_serializable(package="larq_adambnn")
class Adam(tf.keras.optimizers.Adam):
    """Adam with coupled L2 weight decay (torch.optim.Adam's arithmetic).

    ``g += weight_decay * w`` before the moments, for the variables that `decays`
    selects; epsilon is added after the bias-corrected root.  Decoupled decay is
    `tf.keras.optimizers.AdamW`.

    Args:
        learning_rate: float or a Keras schedule.
        weight_decay: initial value of the variable `weight_decay`, which callbacks
            may set while training.
        beta_1, beta_2, epsilon, amsgrad: as in torch.optim.Adam.
        decays: which variables decay; the published rule by default.
        **kwargs: clipping, EMA and other options of Keras optimizers.
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
        decays: Callable[[tf.Variable], bool] = published_decay,
        name: str = "Adam",
        **kwargs,
    ):
        kwargs["jit_compile"] = False
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            adaptive_epsilon=True,
            amsgrad=amsgrad,
            name=name,
            **kwargs,
        )
        self.weight_decay = tf.Variable(
            weight_decay, dtype=tf.keras.backend.floatx(), trainable=False, name="weight_decay"
        )
        self.decays = decays

    def _apply_weight_decay(self, variables):
        """Keras's decoupled decay; it is part of the gradient here."""

    def update_step(self, gradient, variable):
        dtype = variable.dtype.base_dtype
        gradient = tf.convert_to_tensor(gradient)
        if self.decays(variable):
            gradient += tf.cast(self.weight_decay, dtype) * variable
        step = tf.cast(self.iterations + 1, dtype)
        beta_1 = tf.constant(self.beta_1, dtype)
        beta_2 = tf.constant(self.beta_2, dtype)
        beta_2_power = beta_2**step
        index = self._index_dict[self._var_key(variable)]
        slots = {"m": self._momentums[index].handle, "v": self._velocities[index].handle}
        update = tf.raw_ops.ResourceApplyAdam
        if self.amsgrad:
            slots["vhat"] = self._velocity_hats[index].handle
            update = tf.raw_ops.ResourceApplyAdamWithAmsgrad
        update(
            var=variable.handle,
            **slots,
            beta1_power=beta_1**step,
            beta2_power=beta_2_power,
            lr=tf.cast(self.learning_rate, dtype),
            beta1=beta_1,
            beta2=beta_2,
            # The kernel divides by sqrt(v) + epsilon and multiplies by the root of
            # the correction; PyTorch adds epsilon after that root.
            epsilon=tf.constant(self.epsilon, dtype) * tf.sqrt(1 - beta_2_power),
            grad=gradient,
        )

    def get_config(self):
        config = super().get_config()
        config.pop("adaptive_epsilon", None)
        config.pop("jit_compile", None)
        config["weight_decay"] = float(self.weight_decay.numpy())
        if self.decays is not published_decay:
            config["decays"] = self.decays
        return config
