"""A folder's way to the Hugging Face hub, by huggingface_hub, with the token that it finds itself."""

from __future__ import annotations

from pathlib import Path

from oxa.errors import ConfigError, UserError, is_out_of_reach


def check(name: str) -> None:
    """Raises ConfigError where OWNER/NAME is no repository's name, or there is no token, before any work is done."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented all the same

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push {name}: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise ConfigError(f"--push {name}: expected OWNER/NAME")
    if get_token() is None:
        raise ConfigError(f"--push {name}: there is no token; set HF_TOKEN, or log in by `hf auth login`")


def push(folder: Path, name: str, title: str) -> str:
    """Uploads the folder as one commit of that title and returns the repository's address.

    A repository that is new is private; the visibility of one that is there is left alone. Raises UserError where the
    hub refuses or cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(library_name="oxa")
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=title)
    # of an upload's threads comes a RuntimeError, of an answer that means nothing a ValueError
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, RuntimeError, ValueError) as error:
        raise UserError(f"--push {name}: {_reason(error)}; {folder} is whole, push it again") from error
    return str(address)


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    first: BaseException = error
    while first.__cause__ and not isinstance(first, HfHubHTTPError):
        first = first.__cause__
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        first = error  # what huggingface_hub says itself, of a card's metadata for one
    if isinstance(first, HfHubHTTPError):
        status, said = first.response.status_code, " ".join((first.server_message or "").split())[:200]
        advice = {
            401: "the hub does not know the token; set HF_TOKEN to one that it knows",
            403: "the token may not write there; take one that may, or another OWNER",
        }
        return advice.get(status, "the hub refused") + f" (status {status}{f', {said!r}' * bool(said)})"
    if isinstance(first, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps from the hub; unset it"
    what = "the hub cannot be reached" if is_out_of_reach(error) else "the hub takes no such upload"
    return f"{what} ({' '.join(str(first).split())[:200] or type(first).__name__})"
