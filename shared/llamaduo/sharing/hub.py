"""Pushes a folder to the Hugging Face Hub in one commit. The token is never part of a message, a log or a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llamaduo.errors import LlamaDuoError, UserInputError
from llamaduo.hub_datasets import EXTRA

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]
TOKEN, TOKEN_FILE = "HF_TOKEN", "HF_TOKEN_FILE"
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
INSTEAD = "`llamaduo export` writes the same to a folder"


@dataclass(frozen=True)
class Target:
    """A repository on the Hub; `option` is where it was named."""

    repo: str
    kind: Kind
    option: str


def target_of(repo: str, kind: Kind, option: str) -> Target:
    """UserInputError where it is no `owner/name`."""
    if not REPO.fullmatch(repo):
        raise UserInputError(f"{repo!r} is not owner/name", field=option, hint="e.g. my-team/support-triage")
    return Target(repo, kind, option)


def hub_token(environment: Mapping[str, str]) -> str:
    """From HF_TOKEN, the file that HF_TOKEN_FILE names, or the one `hf auth login` writes. UserInputError without."""
    if token := environment.get(TOKEN, "").strip():
        return token
    _installed()
    from huggingface_hub import constants

    named = environment.get(TOKEN_FILE)
    file = Path(named or constants.HF_TOKEN_PATH)
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named is not None:
            why = f"the token cannot be read: {type(error).__name__}"
            raise UserInputError(why, file=named, field=TOKEN_FILE) from error
        token = ""
    if not token:
        raise UserInputError(
            "pushing to the Hub needs a token with the right to write",
            field=TOKEN,
            hint=f"export {TOKEN}=…, or {TOKEN_FILE} with the name of a file that holds it; {INSTEAD}",
        )
    return token


def api_of(token: str) -> HfApi:
    """The Hub's client with this token, at HF_ENDPOINT. UserInputError where it is not installed."""
    _installed()
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(token=token, library_name="llamaduo")


def _installed() -> None:
    try:
        import huggingface_hub  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise UserInputError("pushing to the Hub needs a package", hint=EXTRA) from error


def prepare(api: HfApi, target: Target, *, public: bool) -> None:
    """The repository is there and as private as asked for; made now where it is not there.

    UserInputError where it is public and that was not asked for, or the token may not make it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _in_words(target):
        try:
            there = api.repo_info(target.repo, repo_type=target.kind)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:  # 401: a token that is none
                raise
            api.create_repo(target.repo, repo_type=target.kind, private=not public)
            return
        if not there.private and not public:
            raise UserInputError(
                f"{target.repo} is public", field=target.option, hint="--public pushes there all the same"
            )


def push(api: HfApi, target: Target, folder: Path, message: str) -> str:
    """All files of `folder` in one commit; its address. What else is in the repository stays.

    UserInputError where the token may not do it, LlamaDuoError where the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd

    files = [
        CommitOperationAdd(path_in_repo=file.relative_to(folder).as_posix(), path_or_fileobj=file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    with _in_words(target):
        made = api.create_commit(target.repo, repo_type=target.kind, operations=files, commit_message=message)
        return str(made.commit_url)


@contextmanager
def _in_words(target: Target) -> Iterator[None]:
    """What the client raises, as one line with what to do. Its own text may be long, so only its kind is told."""
    try:
        yield
    except LlamaDuoError:
        raise
    except Exception as error:  # what can go wrong on the way differs with the client's HTTP library
        raise _told(error, target) from None


def _told(error: Exception, target: Target) -> LlamaDuoError:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return LlamaDuoError(f"HF_HUB_OFFLINE is set, so nothing is pushed to {target.repo}: {INSTEAD}")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return UserInputError(
            "the Hub does not know this token", field=TOKEN, hint="make one with the right to write"
        )
    if status == 403:
        return UserInputError(
            f"this token may not write to {target.repo}",
            field=target.option,
            hint="a token with the right to write there, or an owner of your own",
        )
    if status is not None:
        return LlamaDuoError(f"the Hub answered {status} for {target.repo}: try again later, or {INSTEAD}")
    if isinstance(error, ValueError):
        return LlamaDuoError(f"the Hub's client refuses to push to {target.repo}: {str(error).splitlines()[0][:200]}")
    return LlamaDuoError(
        f"the Hub could not be reached for {target.repo} ({type(error).__name__}): is there a network? {INSTEAD}"
    )
