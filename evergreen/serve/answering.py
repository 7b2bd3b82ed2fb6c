"""One request's way: from a checked body to the engine and back, whole or as a stream, and into the log.

Promises: tokenising and waiting for an engine never hold up the event loop; who hangs up frees what was running for him
at once; a request's row is written however it ends; an error before the first token is a status, one after it the
stream's last event.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evergreen import feedback
from evergreen.engine.base import Output
from evergreen.home import new_id
from evergreen.records import Completion, EvergreenError
from evergreen.serve import protocol, split
from evergreen.serve.errors import Disconnected, api_error, engine_failed
from evergreen.serve.grounding import Grounding, said
from evergreen.serve.history import MAX_RESERVED_TOKENS, trimmed
from evergreen.serve.inbox import Inbox
from evergreen.serve.keys import Key
from evergreen.serve.models import Served
from evergreen.serve.output_items import Events
from evergreen.serve.protocol import Call, Choice, Chunks, Head, Writer
from evergreen.serve.sampling import may_compile
from evergreen.serve.schemas import ApiError, SamplingBody

if TYPE_CHECKING:
    from evergreen.serve.desk import Desk

KEEP_ALIVE_SECONDS = 5.0  # of silence, before a stream's first event
CANCEL_SECONDS = 10.0  # how long a cancelled request may take to say so
MANY_TURNS = 100  # 10 ms of reading
SEND_SECONDS = 60.0  # a client that takes nothing for so long is gone
PREFIXES = {"chat": "chatcmpl-", "response": "resp_", "completion": "cmpl-", "generate": "gen-"}


class Answering:
    """One body on its way to one response."""

    def __init__(
        self,
        desk: "Desk",
        key: Key,
        route: str,
        body: SamplingBody,
        to_call: Callable[..., Call],
        session: str = "",
        is_ahead: bool = False,
    ):
        """`session` is the page's cookie; where a split needs one and there is none, it gets one here. `is_ahead`:
        nobody waits, the answer is made for the cache."""
        self.is_ahead = is_ahead
        self.desk, self.key, self.route, self.body, self.to_call = desk, key, route, body, to_call
        self.session, self.created = session, int(time.time())
        self.id, self.started, self.at = new_id(), time.perf_counter(), feedback.now()
        self.inbox = Inbox()
        self.served: Served | None = None
        self.call: Call | None = None
        self.grounding: Grounding | None = None
        self.remembered: Output | None = None  # the answer, from the cache
        self.choices: list[Choice] = []
        self.writer: Writer | None = None
        self.open: dict[str, int] = {}  # engine requests that have not ended -> their choice
        self.completions: list[Completion] = []
        self.num_trimmed, self.num_slots, self.num_prompt_tokens = 0, 0, 0
        self.status, self.error = 200, ""
        self._stack, self._watcher = contextlib.AsyncExitStack(), None

    async def begin(self) -> None:
        """Choose who answers, write the prompts, hand them to the engine."""
        self.served = served = await self._choose()
        sampling = served.release.sampling if served.release else None
        if may_compile(self.body) or is_long(self.body):  # a large grammar takes seconds, and so do ten thousand turns
            await self.desk.in_thread(self._read, sampling)
        else:
            self._read(sampling)
        self.writer = (Events if self.call.kind == "response" else Chunks)(self.call, self.choices)
        self.inbox.is_patient = not self.call.stream
        count = self.call.n * max(1, len(self.call.prompts))
        self.desk.admit(served.base.digest, count)
        self.num_slots = count
        await self.desk.in_thread(self._submit)
        self.desk.limits.spend(self.key, self.num_prompt_tokens)

    @property
    def is_over(self) -> bool:
        return not self.open

    @property
    def head(self) -> Head:
        name = self.call.lora or self.call.model or self.served.name
        return Head(PREFIXES[self.call.kind] + self.id, name, self.created, self.served.fingerprint,
                    self._evergreen())  # fmt: skip

    def watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """Hear at once when the client hangs up."""

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.inbox.close()

        self._watcher = asyncio.create_task(until_gone())

    async def outputs(self) -> AsyncIterator[tuple[Choice, Output]]:
        """Until the last choice has ended. Raises ApiError when the engine gives one up."""
        while self.open:
            for output in await self.inbox.take():
                yield self._took(output), output

    async def whole(self) -> dict[str, Any]:
        """The response in one piece."""
        if self.is_held:
            await self._settle()
        async for choice, output in self.outputs():
            choice.add(output)
        return self.writer.whole(self.head)

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, those that came together in one string; the first comes with the first token.

        Raises ApiError, but only in the place of the first."""
        head, has_begun = self.head, False
        try:
            if self.is_held:
                parts = await self._settle()
                head, has_begun = replace(head, evergreen=self._evergreen()), True
                yield self.writer.some(head, parts)
            while self.open:
                parts: list[dict] = []
                for output in await self.inbox.take():
                    parts += self._took(output).add(output)
                if not self.open:
                    head = replace(head, evergreen=self._evergreen())
                if parts:
                    has_begun = True
                    yield self.writer.some(head, parts)
            yield self.writer.end(head)
        except ApiError as error:
            if not has_begun:
                raise
            self.fail(error)
            yield self.failed(error)

    async def stream(self) -> AsyncIterator[str]:
        """`events`, before the first of which a comment line comes every few seconds: an answer that waits for its turn
        or its check is silent for long, and proxies cut silent connections. Raises ApiError, and whatever else went
        wrong, but only in the place of the very first."""
        events, has_begun = self.events(), False
        first = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait([first], timeout=KEEP_ALIVE_SECONDS))[0]:
                has_begun = True
                yield protocol.KEEP_ALIVE
            text, has_begun = first.result(), True
            yield text
            async for text in events:
                yield text
        except (ApiError, EvergreenError) as error:
            if not has_begun:
                raise
            self.fail(error)
            yield self.failed(api_error(error) if isinstance(error, EvergreenError) else error)
        finally:
            if not first.done():  # nobody listens any more
                self.inbox.close()
                await asyncio.wait([first])
            await events.aclose()

    def failed(self, error: ApiError) -> str:
        """The last event of a stream that ends so."""
        return self.writer.failed(self.head, error)

    @property
    def is_held(self) -> bool:
        """Whether nothing may be shown before it is checked."""
        return bool(self.remembered or (self.grounding and self.grounding.is_held))

    async def _settle(self) -> list[dict]:
        """Hear held answers out and check them; what may be shown, as entries of a chunk's `choices`."""
        if self.remembered:
            return self.choices[0].add(self.remembered)
        heard: dict[int, list[Output]] = {choice.index: [] for choice in self.choices}
        async for choice, output in self.outputs():
            heard[choice.index].append(output)
        parts: list[dict] = []
        for choice in self.choices:
            for output in await self._checked(choice.index, heard[choice.index]):
                parts += choice.add(output)
        return parts

    async def _checked(self, place: int, outputs: list[Output]) -> list[Output]:
        """The outputs of a choice as they are, those of its second try, or an abstention."""
        grounding, completion = self.grounding, outputs[-1].completion
        judged = await self.desk.in_thread(grounding.judge, completion.text)
        if judged is not None:
            call, second = await self.desk.in_thread(grounding.second, self.call, judged, self._count)
            await self.desk.in_thread(self._submit_again, call, place)
            outputs = [output async for _, output in self.outputs()]
            finished = await self.desk.in_thread(grounding.last, second, judged, outputs[-1].completion.text)
            if finished.outcome == "abstained":
                outputs = [said(outputs[-1], finished.text)]
        return outputs

    def _submit_again(self, call: Call, place: int) -> None:
        """In a thread: one more answer to a choice."""
        served = self.served
        prompts = protocol.prompt_ids(call, served.tokenizer, served.system)
        name, room = f"{self.id}-again-{place}", served.engine.max_context_tokens
        [request] = protocol.engine_requests(call, prompts, name, room, served.adapter, self.key.name)
        self.open[request.id] = place
        try:
            served.engine.submit(request, self.inbox.put)
        except BaseException:
            del self.open[request.id]
            raise

    def _count(self, text: str) -> int:
        return len(self.served.tokenizer.encode(text, add_special_tokens=False))

    def fail(self, error: BaseException) -> None:
        """Remember how it ended."""
        if isinstance(error, EvergreenError):
            error = api_error(error)
        if isinstance(error, ApiError):
            self.status, self.error = error.status, error.message
        elif isinstance(error, Disconnected):
            self.status, self.error = 499, "the client hung up"
        else:
            self.status, self.error = 500, f"{type(error).__name__}: {error}"

    async def wind_up(self) -> None:
        """Cancel what still runs, and hear it out."""
        if self._watcher:
            self._watcher.cancel()
        self.inbox.open_again()
        for id in self.open:
            self.served.engine.cancel(id)
        with contextlib.suppress(TimeoutError, ApiError):
            async with asyncio.timeout(CANCEL_SECONDS):
                while self.open:
                    for output in await self.inbox.take():
                        self._took(output, strict=False).add(output)
        await self.end()

    async def end(self) -> None:
        """Count it and write its row."""
        if self._watcher:
            self._watcher.cancel()
        if self.num_slots:
            self.desk.leave(self.served.base.digest, self.num_slots)
        for completion in self.completions:
            self.desk.metrics.count(self.served.name, completion)
        self.desk.limits.spend(self.key, sum(one.completion_tokens for one in self.completions))
        if not self.is_ahead:
            self.desk.log.add(self._row())
        if self.grounding and self.status == 200 and self.choices and self.choices[0].completion:
            self.desk.aside(self.grounding.keep, self.choices[0].completion)
        await self._stack.aclose()

    # -- inside

    async def _choose(self) -> Served:
        """By `model`, by `lora_request`, or both where they agree: an adapter on the base that is named."""
        model, lora = self.body.model or "", self.body.lora_request.lora_name if self.body.lora_request else ""
        served = await self._of_split(lora or model)
        if lora and model not in ("", lora):
            named = await self._stack.enter_async_context(self.desk.models.chosen(model))
            is_same = named.base is served.base and named.adapter in ("", served.adapter)
            if not is_same:
                raise ApiError(400, f"lora_request names {lora} and model names {model}, which is another",
                               param="lora_request")  # fmt: skip
        return served

    async def _of_split(self, name: str) -> Served:
        """What a name stands for, for this user. A trial that cannot be loaded costs nobody an answer."""
        models = self.desk.models
        if models.is_split(name) and not (self.body.user or self.session):
            self.session = new_id()
        arm = models.arm(name, split.user_of(self.key.name, self.body.user or "", self.session))
        try:
            return await self._stack.enter_async_context(models.chosen(arm))
        except EvergreenError:
            if arm == name:
                raise
        return await self._stack.enter_async_context(models.chosen(name))

    def _read(self, sampling: dict | None) -> None:
        """What is asked; the search for it begins."""
        self.grounding = Grounding.begin(self.desk.knowledge, self.desk.settings.knowledge, self.body, self.served)
        self.call = self.to_call(self.body, sampling)

    def _submit(self) -> None:
        """In a thread: tokenise, beside the search; add what it found, trim, hand over."""
        call, served = self.call, self.served
        room = served.engine.max_context_tokens
        prompts = protocol.prompt_ids(call, served.tokenizer, served.system)
        if self.grounding:
            wanted = call.sampling.max_new_tokens or min(MAX_RESERVED_TOKENS, room // 4)
            self.call = self.grounding.prepare(call, self._count, room - len(prompts[0]) - wanted)
            if self.call is not call:
                call, prompts = self.call, protocol.prompt_ids(self.call, served.tokenizer, served.system)
            self.remembered = self.grounding.cached(call, (self.key, self.body, self.to_call), self.is_ahead)
            if self.remembered:
                self.choices.append(Choice(call, 0))
                return
        may_trim = self.desk.settings.trim_history if call.may_trim is None else call.may_trim
        if may_trim and call.is_chat:
            self.call, prompts, self.num_trimmed = trimmed(call, prompts, served, room)
            call = self.call
        self.num_prompt_tokens = sum(map(len, prompts))
        requests = protocol.engine_requests(call, prompts, self.id, room, served.adapter, self.key.name)
        for i, request in enumerate(requests):
            self.choices.append(Choice(call, i, self._echo(prompts[i // call.n])))
            self.open[request.id] = i
        num_submitted = 0
        try:
            for request in requests:
                served.engine.submit(request, self.inbox.put)
                num_submitted += 1
        except BaseException:
            for request in requests[num_submitted:]:
                del self.open[request.id]
            raise

    def _echo(self, prompt: Sequence[int]) -> str:
        return self.served.tokenizer.decode(prompt) if self.call.echo else ""

    def _took(self, output: Output, strict: bool = True) -> Choice:
        choice = self.choices[self.open[output.id]]
        if output.is_last:
            del self.open[output.id]
        if output.completion:
            self.completions.append(output.completion)
        if output.error and strict:
            raise ApiError(400, output.error) if output.is_refused else engine_failed(output.error)
        return choice

    def _evergreen(self) -> dict[str, Any]:
        served = self.served
        return {
            "release": served.release.id if served.release else None,
            "adapter": served.adapter or None,
            "knowledge": None,
            "snapshot": None,
            "sources": [],
            "citations": [],
            "problems": [],
            "cached": False,
            "trimmed": self.num_trimmed,
            "engine_seconds": max((one.latency_seconds for one in self.completions), default=None),
        } | (self.grounding.told() if self.grounding else {})

    def _row(self) -> feedback.Interaction:
        served, done, grounding = self.served, self.completions, self.grounding
        return feedback.Interaction(
            self.id,
            self.at,
            self.route,
            self.key.name,
            (self.call.user if self.call else self.body.user) or "",
            self.body.model or (served.name if served else ""),
            served.release.id if served and served.release else None,
            served.base.digest if served else None,
            (served.adapter or None) if served else None,
            grounding.prepared.n if grounding and grounding.prepared else None,
            input=self.body.model_dump(mode="json", exclude_none=True, by_alias=True),
            output=self.writer.logged(self.head) if self.writer else None,
            status=self.status,
            finish_reason=next((one.completion.finish_reason for one in self.choices if one.completion), ""),
            error=self.error,
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=sum(one.num_cached_tokens for one in done),
            completion_tokens=sum(one.completion_tokens for one in done),
            first_token_seconds=min((one.first_token_seconds for one in done), default=None),
            latency_seconds=time.perf_counter() - self.started,
            session=self.session or None,
            grounding=grounding.logged() if grounding else None,
            cached=int(grounding.is_cached) if grounding else None,
        )


def is_long(body: SamplingBody) -> bool:
    """Whether it has so many turns that to read them would hold up the event loop."""
    turns = getattr(body, "messages", None) or getattr(body, "input", None)
    return isinstance(turns, list) and len(turns) > MANY_TURNS
