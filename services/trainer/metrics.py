"""What training does, as Prometheus sees it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from services.trainer.engine import TrainProgress, TrainResult

STEPS = Counter("llamaduo_training_steps_total", "Optimizer steps done; those of an earlier try are not done again")
LOSS = Gauge("llamaduo_training_loss", "Training loss of the last step, nats a token")
VALIDATION_LOSS = Gauge("llamaduo_training_validation_loss", "The last validation loss, nats a token")
ADAPTERS = Counter("llamaduo_adapters_trained_total", "Adapters made", ["device", "precision"])
LEARNED_TOKENS = Counter(
    "llamaduo_training_learned_tokens_total", "Tokens of the answers that finished adapters learned from, each once"
)
PEAK_MEMORY = Gauge("llamaduo_training_peak_memory_bytes", "Most memory that the last finished training had")


def counted(tell: Callable[[TrainProgress], None]) -> Callable[[TrainProgress], None]:
    """`tell` of one job, with its steps and losses noted. A job that is taken up again begins where it was."""
    last: int | None = None

    def told(progress: TrainProgress) -> None:
        nonlocal last
        STEPS.inc(1 if last is None else max(0, progress.step - last))
        last = progress.step
        if progress.loss is not None:
            LOSS.set(progress.loss)
        if progress.validation_loss is not None:
            VALIDATION_LOSS.set(progress.validation_loss)
        tell(progress)

    return told


def note_adapter(result: TrainResult) -> None:
    """An adapter is finished."""
    ADAPTERS.labels(result.device, result.precision).inc()
    LEARNED_TOKENS.inc(result.label_tokens)
    PEAK_MEMORY.set(result.peak_rss_mb * 2**20)
    if result.validation_loss is not None:
        VALIDATION_LOSS.set(result.validation_loss)
