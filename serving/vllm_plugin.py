"""vLLM's side of serving: a LoRA resolver that answers `domain@alias` from the registry. Only vLLM imports this module.

Two entry points of one name. `register` (`vllm.general_plugins`) enters the resolver; `Introduction` (`vllm.endpoint_plugins`,
loaded where VLLM_PLUGINS names it) informs it what is served, adds no route, and stops a server in which the base model could
answer in an adapter's place. Until then, the resolver knows no name.

https://docs.vllm.ai/en/latest/design/lora_resolver_plugins
"""

from __future__ import annotations

import asyncio
import os
import weakref
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any

import vllm.envs as vllm_envs  # pyright: ignore[reportMissingImports]
from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest  # pyright: ignore[reportMissingImports]
from vllm.exceptions import GracefulHTTPError  # pyright: ignore[reportMissingImports]
from vllm.logger import init_logger  # pyright: ignore[reportMissingImports]
from vllm.lora.peft_helper import PEFTHelper  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # pyright: ignore[reportMissingImports]

from ..registry import Base, Registry, Settings
from ..registry.catalog.references import Reference
from ..registry.errors import (
    BaseMismatchError,
    ConflictError,
    InvalidReferenceError,
    NotFoundError,
    RecCocktailError,
    UnsupportedAdapterError,
    UsageError,
)
from . import resolve as serving

NAME = "reccocktail"
REFRESH = "RECCOCKTAIL_SERVE_REFRESH"
REFRESH_SECONDS = 10.0
READ_BY_VLLM = ("auto", "safetensors")  # formats of loading that read the weights that were compared

logger = init_logger(f"vllm.plugins.{NAME}")


class _Request(LoRARequest, weakref=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]  a msgspec struct
    """One that reports when vLLM has released it: it is held while the name is loaded, and by each answer that is made with it."""


class Resolver(LoRAResolver):
    """Names that the registry knows become LoRA requests or errors; other names are unknown to it."""

    def __init__(self) -> None:
        self._registry: Registry | None = None
        self._base: Base | None = None
        self._limits: Any = None
        self._digests: dict[str, str] = {}
        """By name, the digest of the version that is served under it."""
        self._called: Counter[str] = Counter()
        """How often a version was given to vLLM under a name."""
        self._ended: deque[ExitStack] = deque()
        """What lets the tree go of each request that vLLM has let go since the last look."""
        self._due: list[ExitStack] = []
        """And of those before it."""

    def introduce(self, registry: Registry, base: Base, limits: Any) -> None:
        """Sets what is served: from now on it answers. `limits` is vLLM's LoRAConfig."""
        self._registry, self._base, self._limits = registry, base, limits

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Raises GracefulHTTPError and nothing else, which the client gets: 404, 400 or 503, and what is wrong with the name."""
        if self._registry is None:
            logger.warning(
                "%r is not looked up in RecCocktail's registry: VLLM_PLUGINS does not name %s", lora_name, NAME
            )
            return None
        try:
            found = await asyncio.to_thread(self._find, self._registry, lora_name)
        except RecCocktailError as error:
            logger.warning("%s is not served: %s%s", lora_name, error, f" ({error.hint})" if error.hint else "")
            raise _http_error(lora_name, error) from error
        except Exception as error:
            logger.exception("%s is not served", lora_name)
            raise _http_error(lora_name, error) from error
        if found is None:
            return None
        origin, request = found
        # here and not in the thread, which continues when the client has left and nothing is loaded
        self._digests[lora_name] = origin.digest
        request.lora_name = self._new_name(lora_name, origin)
        logger.info("%s is %s, %s", lora_name, origin.ref, origin.digest)
        return request

    async def moved(self) -> list[str]:
        """The names that mean another version now than the one served, or none. Raises RecCocktailError."""
        return await asyncio.to_thread(self._moved, dict(self._digests))

    def forget(self, name: str) -> None:
        self._digests.pop(name, None)

    async def release(self) -> None:
        """Ends the use of trees with which nothing was answered any more at the look before.

        Not at once: vLLM's engine hears of an aborted request a moment later than its client.
        """
        await asyncio.to_thread(self._release)

    def _find(self, registry: Registry, name: str) -> tuple[serving.Origin, _Request] | None:
        try:
            ref = Reference.parse(name)
        except InvalidReferenceError:
            return None
        if not serving.is_known(registry, ref):
            return None
        assert self._base is not None
        with ExitStack() as until:
            found = serving.find(registry, ref, base=self._base.name, until=until)
            self._refuse_unless_fit(found)
            # vLLM counts its adapters itself and writes its own number over this one
            request = _Request(
                lora_name=name, lora_int_id=1, lora_path=str(found.folder), base_model_name=found.origin.base
            )
            # until then the engine may read the folder again at any time. No more is done here than to note it: this is
            # called wherever the request ends, be it in a thread that holds the cache's locks
            weakref.finalize(request, self._ended.append, until.pop_all())
        return found.origin, request

    def _refuse_unless_fit(self, found: serving.Servable) -> None:
        found.refuse_unless_plain()
        try:  # what vLLM itself refuses, and only writes to its log
            helper = PEFTHelper.from_local_dir(str(found.folder), None)
            helper.validate_legal(self._limits)
        except (ValueError, TypeError, KeyError) as error:
            raise UnsupportedAdapterError(f"{found.origin.ref} cannot be served: {error}") from error
        if found.is_uneven and not hasattr(helper, "rank_pattern"):
            raise UnsupportedAdapterError(
                f"{found.origin.ref} cannot be served: this vLLM gives all of its modules one scale",
                hint="serve it with vLLM 0.32, or serve a merged checkpoint",
            )

    def _release(self) -> None:
        for until in self._due:
            until.close()
        self._due = [self._ended.popleft() for _ in range(len(self._ended))]

    def _new_name(self, name: str, origin: serving.Origin) -> str:
        """What vLLM calls what it answers with: the name, the version or build where it may come to mean another, never the same twice.

        In a batch vLLM distinguishes adapters by their names, and numbers each one anew that it is given. Were two of
        them have the same name while requests for the older one run, it would load only one, and fail without the other.
        """
        shown = name if Reference.parse(name).version is not None else f"{name}={origin.label}"
        self._called[shown] += 1
        times = self._called[shown]
        return shown if times == 1 else f"{shown}#{times}"

    def _moved(self, digests: Mapping[str, str]) -> list[str]:
        assert self._registry is not None
        assert self._base is not None
        refs = {name: Reference.parse(name) for name in digests}
        now = serving.digests(self._registry, refs.values(), base=self._base.name)
        return [name for name, digest in digests.items() if now.get(refs[name]) != digest]


class Introduction:
    """Informs the resolver what is served, before the server takes requests."""

    name = NAME
    required_tasks = None

    def attach_router(self, app: object) -> None:
        """It has no routes."""

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Raises RecCocktailError, which ends the server, where the base model could be served in an adapter's place."""
        if engine_client is None:  # a server that renders prompts, and answers none
            return
        config, models = engine_client.vllm_config, state.openai_serving_models
        try:
            seconds, registry = _refresh_seconds(), Registry.open(Settings.load())
            names = [path.name for path in models.base_model_paths]
            base = await asyncio.to_thread(_checked, registry, config, names)
        except RecCocktailError as error:
            if error.hint:
                logger.error("what to do: %s", error.hint)  # a traceback has the message alone
            raise
        RESOLVER.introduce(registry, base, config.lora_config)
        logger.info("adapters for the base model %s come from RecCocktail's registry", base.name)
        if seconds:
            state.reccocktail_following = asyncio.create_task(_follow(models, seconds))


RESOLVER = Resolver()


def register() -> None:
    """Enters the resolver. vLLM calls it in each of its processes, so it opens nothing."""
    LoRAResolverRegistry.register_resolver(NAME, RESOLVER)


def _checked(registry: Registry, config: Any, names: list[str]) -> Base:
    """The base model that is served. Raises RecCocktailError, with the setting of vLLM's that is to be changed."""
    if vllm_envs.VLLM_SKIP_MODEL_NAME_VALIDATION:
        raise UsageError(
            "with VLLM_SKIP_MODEL_NAME_VALIDATION the base model answers to every name", hint="leave it unset"
        )
    if not vllm_envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise UsageError(
            "vLLM asks no resolver for names", hint="set VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or take "
            f"{NAME} out of VLLM_PLUGINS",
        )  # fmt: skip
    if config.lora_config is None:
        raise UsageError("vLLM was started without adapters", hint="add --enable-lora and --max-lora-rank")
    if config.lora_config.target_modules:
        raise UsageError("with --lora-target-modules vLLM silently ignores parts of adapters", hint="leave it out")
    if config.load_config.load_format not in READ_BY_VLLM:
        raise UsageError(
            f"with --load-format {config.load_config.load_format} it is not known which weights are served",
            hint=f"use one of {', '.join(READ_BY_VLLM)}",
        )
    serving.refuse_taken_names(registry, names)
    model = config.model_config
    return serving.served_base(registry, model.model, model.revision, os.environ.get(serving.SERVED_BASE))


def _refresh_seconds() -> float:
    text = os.environ.get(REFRESH, str(REFRESH_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{REFRESH}={text!r} is no number of seconds", hint="0 follows no alias")
    return seconds


async def _follow(models: Any, seconds: float) -> None:
    """Has vLLM forget names whose version has changed, so that the next request for them asks the resolver again."""
    following = True
    while True:
        await asyncio.sleep(seconds)
        try:
            for name in await RESOLVER.moved():
                await _unload(models, name)
            await RESOLVER.release()
        except Exception as error:  # noqa: BLE001  whatever it is, the next look may go well
            if following:
                logger.warning("aliases are not followed for now: %s: %s", type(error).__name__, error)
            following = False
        else:
            if not following:
                logger.info("aliases are followed again")
            following = True


async def _unload(models: Any, name: str) -> None:
    reply = await models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
    if name in models.lora_requests:  # then it has to be tried again
        logger.warning("%s means another version now, or none, but vLLM keeps the one it has: %s", name, reply)
        return
    RESOLVER.forget(name)
    logger.info("%s means another version now, or none", name)


def _http_error(name: str, error: Exception) -> GracefulHTTPError:
    """What the client gets. It learns only that the registry has a problem, not which."""
    if isinstance(error, NotFoundError):
        return GracefulHTTPError(str(error), HTTPStatus.NOT_FOUND)
    if isinstance(error, UsageError | ConflictError | UnsupportedAdapterError | BaseMismatchError):
        return GracefulHTTPError(str(error), HTTPStatus.BAD_REQUEST)
    return GracefulHTTPError(f"{name} cannot be fetched from the registry now", HTTPStatus.SERVICE_UNAVAILABLE)
