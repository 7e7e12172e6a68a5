"""Data sets of the Hugging Face hub: which files hold a configuration's split, and these files on this disk.

Only data files are fetched (the hub's own conversion to Parquet, else what the set itself holds); no script of a data set is ever run.
Knows nothing of questions.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gradalign.questions.layout import choose, file_layout
from gradalign.questions.sets import HubSource, Part
from gradalign.types import GradalignError

REVISIONS = ("refs/convert/parquet", "main")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}")


def fetched(source: HubSource, part: Part, split: str | None) -> list[Path]:
    """The files of one part of a source on this disk, fetched if need be; without a connection those that were fetched before."""
    what = f"{source.text} ({part.repository} on the hub)"
    wanted = split or (source.splits[0] if source.splits else None)
    fault: Exception | None = None
    offline = HF_HUB_OFFLINE
    for revision in REVISIONS:
        try:
            try:
                files = repository_files(part.repository, revision, offline)
            except (EntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError):
                raise
            except Exception as error:  # whatever a connection provokes
                fault, offline = error, True
                files = repository_files(part.repository, revision, offline)
            if layout := file_layout(files):
                chosen = choose(layout, part.configuration, wanted, what, "put one behind its name and a colon")
                return _all_fetched(part.repository, revision, chosen, offline, what)
        except (EntryNotFoundError, RevisionNotFoundError) as error:
            fault = fault or error
        except GradalignError:
            raise
        except Exception as error:
            raise GradalignError(_why_not_read(source, part, error)) from error
    raise GradalignError(_why_not_read(source, part, fault)) from fault


def _all_fetched(repository: str, revision: str, files: Sequence[str], offline: bool, what: str) -> list[Path]:
    """All of the files; without a connection those that are not on this disk are named, and none are read without them."""
    found, missing = [], []
    for file in files:
        try:
            found.append(fetch(repository, revision, file, offline))
        except LocalEntryNotFoundError:
            if not offline:
                raise
            missing.append(file)
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise GradalignError(
            f"{what} is not whole on this disk, and the hub is not reached: {named} missing; connect and read it once"
        )
    return found


def repository_files(repository: str, revision: str, offline: bool) -> Sequence[str]:
    """Paths of the files in a data set's repository; without a connection as last listed with one, else those that were fetched."""
    listing = Path(HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / f"gradalign-{revision.replace('/', '-')}.txt"
    if offline and listing.exists():
        return listing.read_text(encoding="utf-8").splitlines()
    if offline:
        folder = Path(snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True))
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    files = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision)
    with contextlib.suppress(OSError):  # a cache that cannot be written is still read
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{file}\n" for file in files if file_layout([file])), encoding="utf-8")
    return files


def fetch(repository: str, revision: str, file: str, offline: bool) -> Path:
    """One file of a data set's repository on this disk."""
    return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision, local_files_only=offline))


def _why_not_read(source: HubSource, part: Part, fault: Exception | None) -> str:
    what = f"question set {source.text} ({part.repository} on the hub)"
    local = "give a local file of it (.parquet, .jsonl, .json, .csv, .tsv)"
    if isinstance(fault, GatedRepoError):
        page = f"https://huggingface.co/datasets/{part.repository}"
        return f"{what} is gated: accept its terms at {page} and log in with `hf auth login`, or {local}"
    if fault is None:
        return f"{what} holds no files that can be read; {local}"
    reason = "no such data set" if isinstance(fault, RepositoryNotFoundError) else "no network, no such data set"
    gated = " (it is gated: log in with `hf auth login`)" if source.gated else ""
    return f"{what} could not be read: {reason}, or no access{gated}; check the name and the connection, or {local} ({_first_line(fault)})"


def _first_line(error: Exception) -> str:
    """The first line of a fault, with no token in it."""
    return _TOKEN.sub("hf_...", (str(error).strip() or type(error).__name__).splitlines()[0])[:160]
