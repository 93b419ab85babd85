"""What went wrong between here and the Hugging Face Hub, in a few words."""

from __future__ import annotations

import os
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_OF_STATUS = {
    401: "it asks for a login: `hf auth login`, or set HF_TOKEN",
    403: "the token that you are logged in with may not do this: `hf auth login` with one that may write",
    404: "there is no such repository, or it is private: check the name, and `hf auth login` for private ones",
    409: "there is another repository of this name",
    429: "too many requests: wait a while",
}


def hub_reason(error: BaseException) -> str:
    """Why the Hub did not do what was asked, in words that lead on."""
    chain = list(_causes(error))
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain) or constants.HF_HUB_OFFLINE:
        return f"offline mode is on: unset HF_HUB_OFFLINE (it is {os.environ.get('HF_HUB_OFFLINE', 'set')!r}) to ask the Hub"
    for link in chain:
        if isinstance(link, GatedRepoError):
            return "access to it must be asked for on its page, then `hf auth login`"
        if isinstance(link, LocalTokenNotFoundError):
            return _OF_STATUS[401]
        if isinstance(link, RepositoryNotFoundError):
            return _OF_STATUS[404]
        if isinstance(link, RevisionNotFoundError):
            return "it has no such revision"
        if isinstance(link, HfHubHTTPError) and not isinstance(link, EntryNotFoundError):
            status = link.response.status_code
            return _OF_STATUS.get(status, f"the server answers {status} {link.response.reason_phrase}")
        if isinstance(link, HFValidationError):
            return "a name is OWNER/NAME, of letters, digits, and - _ . in between"
    text = next(iter(str(chain[-1]).strip().splitlines()), type(chain[-1]).__name__)
    if any(
        type(link).__name__.startswith(("Connect", "ReadTimeout", "WriteTimeout"))
        and not isinstance(link, HfHubHTTPError)
        for link in chain
    ):
        return f"{constants.ENDPOINT} cannot be reached ({text}): check the network"
    return text


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on; the Hub's client wraps what went wrong in general advice."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
