"""The adapter that a round goes on from: what it must be, and getting its weights."""

from __future__ import annotations

from pathlib import Path

from llamaduo.artifacts import ArtifactStore
from llamaduo.base_models import ResolvedBase
from llamaduo.errors import PermanentError
from llamaduo.event_parts import Adapter
from llamaduo.identity import adapter_digest
from llamaduo.migrations.recipe import Recipe
from services.trainer.engine import ADAPTER_FILES, WEIGHTS


async def fetch_weights(
    adapter: Adapter, base: ResolvedBase, recipe: Recipe, store: ArtifactStore, folder: Path
) -> Path:
    """The weights' file, in `folder`. The adapter's config is not read: the recipe says all that is in it.

    Raises PermanentError where the adapter is none of ours (other files than the two, a digest that is not
    theirs) or cannot be gone on from (another base model or rank), ArtifactCorrupt where the stored bytes are not
    what the event says.
    """

    def refuse(reason: str) -> PermanentError:
        return PermanentError(f"training cannot go on from adapter {adapter.digest[:12]}…: {reason}")

    if set(adapter.files) != set(ADAPTER_FILES):
        raise refuse(f"its files are {', '.join(sorted(adapter.files))}, not {' and '.join(ADAPTER_FILES)}")
    if adapter_digest({name: ref.sha256 for name, ref in adapter.files.items()}) != adapter.digest:
        raise refuse("this is not the digest of its files")
    if adapter.base_digest != base.digest:
        raise refuse(f"its base model is {adapter.base_digest[:12]}…, the one here is {base.digest[:12]}…")
    if adapter.rank != recipe.rank:
        raise refuse(f"its rank is {adapter.rank}, the recipe's is {recipe.rank}")
    path = folder / "previous.safetensors"
    await store.fetch(adapter.files[WEIGHTS], path)
    return path
