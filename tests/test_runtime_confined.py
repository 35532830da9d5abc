"""A job whose files lie outside the service's folder is not run, whatever the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving import ScriptedRuntime

from lookalike import errors
from lookalike.retrieval.receipt import Progress
from lookalike.runtime.confined import ConfinedRuntime
from lookalike.runtime.job import ExpansionJob


class Recorder(ScriptedRuntime):
    async def run(self, job: ExpansionJob, progress: object) -> None:  # type: ignore[override]
        self.jobs.append(job)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data" / "jobs").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return tmp_path / "data"


def job(root: Path) -> ExpansionJob:
    return ExpansionJob(
        job_id="j",
        campaign="c",
        seeds=root / "jobs" / "seeds.parquet",
        k=1,
        pool=root.parent / "outside",  # the operator's own choice, not the job's
        output=root / "audiences" / "a",
        cancel_flag=root / "jobs" / "cancel",
        exclusions=root / "jobs" / "exclusions.parquet",
    )


async def test_a_job_within_the_folder_runs(root: Path, tmp_path: Path) -> None:
    runtime = Recorder()
    confined = ConfinedRuntime(runtime, root)
    await confined.run(job(root), _ignore)
    await confined.run(replace(job(root), exclusions=None), _ignore)
    (tmp_path / "link").symlink_to(root)  # another name for the same folder
    await ConfinedRuntime(runtime, tmp_path / "link").run(job(root), _ignore)
    assert len(runtime.jobs) == 3
    assert (confined.capacity, await confined.ready()) == (1, True)


@pytest.mark.parametrize("field", ["output", "seeds", "exclusions", "cancel_flag"])
@pytest.mark.parametrize("way", ["absolute", "dots", "link", "the folder itself"])
async def test_a_way_out_is_refused(field: str, way: str, root: Path) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    path = {
        "absolute": root.parent / "outside" / "x",
        "dots": root / "jobs" / ".." / ".." / "outside" / "x",
        "link": root / "link" / "x",
        "the folder itself": root,
    }[way]
    runtime = Recorder()
    with pytest.raises(errors.FailedPrecondition) as caught:
        await ConfinedRuntime(runtime, root).run(replace(job(root), **{field: path}), _ignore)
    assert (caught.value.field, caught.value.reason) == (field, "OUTSIDE_DATA_DIR")
    assert runtime.jobs == []


def _ignore(step: Progress) -> None:
    pass
