"""What can go wrong with one request; the server lives on."""


class EngineError(Exception):
    """One request cannot be answered, or not to its end."""


class UnknownModel(EngineError):
    """Nothing is served under the name."""

    def __init__(self, name: str, *, known: tuple[str, ...]) -> None:
        super().__init__(f"the model {name!r} is not served here; served are {', '.join(known)}")
        self.name = name


class PromptTooLong(EngineError):
    """Prompt and completion do not fit into the model's context."""

    def __init__(self, *, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens; with at least one to generate the limit is {limit}")
        self.tokens, self.limit = tokens, limit


class QueueFull(EngineError):
    """As many requests wait as are allowed to."""

    def __init__(self, *, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class OutOfMemory(EngineError):
    """There was not enough memory for this request."""


class EngineStopped(EngineError):
    """The server is being stopped."""


class StepFailed(EngineError):
    """The model failed while it computed this request, among others; the log has the details."""


class UnknownToken(EngineError):
    """The prompt was given as numbers, and one of them is no token of the model."""

    def __init__(self, token: int, *, vocabulary: int) -> None:
        super().__init__(f"the prompt has the token {token}; the model's tokens are 0 to {vocabulary - 1}")
        self.token = token
