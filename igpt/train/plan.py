"""What a run would cost, before it is started: size, operations, memory, time."""

from dataclasses import dataclass

from igpt import compute
from igpt.config import RunConfig
from igpt.model.sizes import Shape, activation_bytes, parameter_count, train_flops
from igpt.train.memory import STATE_BYTES
from igpt.train.settings import resolve

# Of the matrix rate: what training reaches with small and with large networks.
SHARES_OF_RATE = (0.1, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of a run on this machine, by formula; only the matrix rate is measured."""

    parameters: int
    tokens_per_image: int
    images: int
    """Seen in the whole run, repeats counted."""
    flops_per_image: int
    """Of forward and backward pass."""
    total_flops: int
    device: str
    precision: str
    micro_batch: int
    """Images a forward pass that fit in memory."""
    memory_bytes: int
    """Of weights, gradients, optimiser state and one micro-batch's activations."""
    matrix_flops_per_s: float
    """Measured here, now."""
    least_s: float
    """At the larger of `SHARES_OF_RATE`."""
    most_s: float
    """At the smaller."""

    def lines(self) -> list[str]:
        """For a person."""
        few, many = (f"{share:.0%}" for share in SHARES_OF_RATE)
        return [
            f"parameters   {self.parameters:,}",
            f"tokens       {self.tokens_per_image:,} an image, {self.images:,} images in all",
            f"operations   {self.flops_per_image:.3g} an image, {self.total_flops:.3g} in all",
            f"memory       {self.memory_bytes / 1e9:.1f} GB with {self.micro_batch} images at once",
            f"matrix rate  {self.matrix_flops_per_s / 1e9:,.0f} GFLOP/s "
            f"({self.device}, {self.precision})",
            f"time         {in_words(self.least_s)} to {in_words(self.most_s)} "
            f"({many} to {few} of the matrix rate)",
        ]


def plan_of(config: RunConfig) -> Plan:
    """The plan of a run in this one process.

    Args:
        config: as for training; the data need not be at hand.
    """
    n_colors = 256 if config.data.tokens == "raw" else config.data.n_colors
    images = config.train.total_steps * config.train.batch_size
    config = resolve(config, n_images=images, n_colors=n_colors, tried=False)
    train, device = config.train, compute.default_device()
    shape = Shape.of_run(config, n_colors)
    dtype = compute.choose_dtype(train.precision, device)
    rate = compute.matrix_rate(device, dtype)
    parameters = parameter_count(config.model, shape)
    flops = train_flops(config.model, shape)
    assert train.micro_batch != "auto"
    kept = activation_bytes(
        config.model, shape, recompute=train.checkpoint_activations, width=dtype.itemsize
    )
    least_s, most_s = (flops * images / (share * rate) for share in reversed(SHARES_OF_RATE))
    return Plan(
        parameters=parameters,
        tokens_per_image=shape.seq_len,
        images=images,
        flops_per_image=flops,
        total_flops=flops * images,
        device=device.type,
        precision=train.precision,
        micro_batch=train.micro_batch,
        memory_bytes=STATE_BYTES * parameters + train.micro_batch * kept,
        matrix_flops_per_s=rate,
        least_s=least_s,
        most_s=most_s,
    )


def in_words(span_s: float) -> str:
    """A span to two digits in the unit that suits it."""
    for unit, seconds in (("years", 31_557_600), ("days", 86_400), ("h", 3600), ("min", 60)):
        if span_s >= seconds:
            return (
                f"{span_s / seconds:.2g} {unit}"
                if span_s < 10 * seconds
                else (f"{span_s / seconds:,.0f} {unit}")
            )
    return f"{span_s:.2g} s"
