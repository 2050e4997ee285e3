"""Work folders of training jobs are kept while a job may go on in them, and not longer."""

from __future__ import annotations

from pathlib import Path

from llamaduo.events import MigrationCancelled
from services.trainer.work_folders import WorkFolders
from tests.simulated import dataset


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_folders_of_ended_migrations_are_removed_when_no_job_is_in_them(tmp_path: Path) -> None:
    folders = WorkFolders(tmp_path)
    ended, also_ended, open_one = dataset(0), dataset(1), dataset(0, migration="m-2")
    for event in (ended, also_ended, open_one):
        folders.take(event)
        (tmp_path / event.id / "checkpoints").mkdir(parents=True)
    (tmp_path / "unknown").mkdir()
    await folders.remove_ended()
    assert len(names(tmp_path)) == 4
    folders.take(MigrationCancelled.model_construct(migration="m-1", type="migration.cancelled"))
    with folders.use(also_ended.id) as folder:
        assert folder == tmp_path / also_ended.id
        await folders.remove_ended()
        assert names(tmp_path) == sorted([also_ended.id, open_one.id, "unknown"])
    await folders.remove_ended()
    assert names(tmp_path) == sorted([open_one.id, "unknown"])


async def test_without_a_folder_there_is_nothing_to_do(tmp_path: Path) -> None:
    await WorkFolders(tmp_path / "none").remove_ended()
