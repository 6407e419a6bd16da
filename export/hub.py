"""Upload an exported folder to a model hub; nothing here runs unless it is asked for by name."""

from pathlib import Path

from tercet.errors import UserError
from tercet.progress import say


def check_push(repo: str) -> None:
    """Raise UserError, before any work, if `repo` is no name, the hub may not be reached, or nobody
    is logged in."""
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push: {error}") from None
    if is_offline_mode():
        raise UserError("--push: offline mode is on; unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise UserError("--push: nobody is logged in; give `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, *, public: bool = False, endpoint: str | None = None) -> str:
    """Upload every file of `folder` to `repo` as one commit; return the commit's address.

    `repo` is `name` or `owner/name`; it is created if it is not there, private unless `public`.
    The account is the one logged in. Raises UserError if the hub refuses or cannot be reached; the
    folder stands then, and the line says how to upload it as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # type: ignore[attr-defined]  # of whichever client the hub's package uses
    )

    check_push(repo)
    say(f"push: {folder} to {repo}")
    later = f"upload {folder}, which is whole: hf upload {repo} {folder}"
    later += "" if public else " --private"
    hub = HfApi(endpoint=endpoint)
    try:
        hub.create_repo(repo, private=not public, exist_ok=True)
        made = hub.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Exported with Tercet"
        )
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        raise UserError(
            f"--push: {repo}: the hub refused ({reason}); log in or rename, then {later}"
        ) from None
    except (OSError, HTTPError) as error:
        reason = f"the hub cannot be reached ({error})"
        raise UserError(f"--push: {repo}: {reason}; later, {later}") from None
    return made.commit_url
