"""What goes wrong, as a status and OpenAI's error shape."""

from evergreen.records import BadInput, EvergreenError
from evergreen.serve.models import UnknownModel
from evergreen.serve.schemas import ApiError

RETRY_SECONDS = 2


class Disconnected(Exception):
    """The client has hung up."""


class Busy(ApiError):
    """Come back in so many seconds: 429, or 503 while the engine is away."""

    def __init__(self, message: str, seconds: int, code: str = "rate_limit_exceeded", status: int = 429):
        super().__init__(status, message, "rate_limit_error" if status == 429 else "server_error", code=code)
        self.seconds = seconds


def api_error(error: EvergreenError) -> ApiError:
    """An error of a lower room."""
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, BadInput):
        return ApiError(400, str(error))
    return engine_failed(str(error))


def engine_failed(message: str) -> ApiError:
    return Busy(message, RETRY_SECONDS, "engine_unavailable", 503)
