"""Rollouts by vLLM, in this process: paged cache, continuous batching, prefix caching, and its fast kernels.

vLLM is built on a folder with the policy's configuration and tokenizer alone; its weights come from the policy, at the
start and after every update, by ``sync``. So there is one source of truth, and whatever ``models.load`` loads can be
rolled out if vLLM knows its architecture. vLLM keeps a second copy of the weights, in its own layout, beside the
cache: count that in when memory is short.

What it leaves to be known:

- One engine lives in a process: vLLM's parallel state is global, so a new one shuts the one before it down.
- Tokens follow from the seeds and the order of the requests. Another batch rounds otherwise, so unlike the torch engine
  a request alone may get other tokens than in company.
- vLLM compiles parts of its sampler when they are first used, on CPU with the system's C++ compiler, and keeps them in
  torch's cache: the first start on a machine takes some ten seconds longer.
- On a CPU machine of several NUMA nodes vLLM binds the process's memory to one of them.

Left out: worker processes and tensor parallelism (weights are pushed by a plain call), one engine for each process of
a distributed run (refused), vLLM's own LoRA (adapters arrive merged), and putting vLLM to sleep during the update.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rlreason.engines import generate, refuse_impossible
from rlreason.policy import Policy
from rlreason.types import Completion, Request, Sampling

_live: weakref.ref[VLLMEngine] | None = None


class VLLMEngine:
    """Implements ``rlreason.types.Engine`` with vLLM's ``LLMEngine``.

    ``kv_cache_gib`` is the cache's size on CPU, ``gpu_memory_utilization`` the share of a GPU's memory that vLLM may
    take, weights, cache and working memory together. ``max_num_seqs`` bounds the rows of a decoding step.
    ``enforce_eager`` False compiles the model (and captures graphs on a GPU): faster, after a start of a minute or so.

    Log-probs are over the whole vocabulary at the sampling temperature, but where ``top_p`` or ``top_k`` are set
    (evaluation only) over the tokens that these left: vLLM reports no others.

    Raises OSError if vLLM is missing or broken, and ValueError for what it can't run, both saying what to do.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        kv_cache_gib: float,
        gpu_memory_utilization: float,
        max_num_seqs: int,
        enforce_eager: bool,
    ) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ValueError("engine=vllm runs in a single process; use engine=torch with several")
        if kv_cache_gib <= 0:
            raise ValueError(f"engine.kv_cache_gib is {kv_cache_gib}; it must be above 0")
        if policy.device.type == "cpu":
            # A prompt cut in two would take a number from its generator twice, and give it back in a way that only
            # CUDA's generators know.
            device: dict[str, Any] = {
                "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(policy.context, 2048),
            }
        else:
            device = {"gpu_memory_utilization": gpu_memory_utilization}
        _close_previous()
        with _process_kept(), tempfile.TemporaryDirectory(prefix="rlreason-vllm-") as folder:
            _check_installed(policy.device)
            from vllm import EngineArgs, LLMEngine

            policy.model.config.save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)
            self._llm: Any = LLMEngine.from_engine_args(
                EngineArgs(
                    model=folder,
                    load_format="dummy",
                    dtype=str(policy.model.dtype).removeprefix("torch."),
                    max_model_len=-1,  # the model's own context, or less if the cache is too small for it
                    max_num_seqs=max_num_seqs,
                    enforce_eager=enforce_eager,
                    generation_config="vllm",  # no sampling defaults other than ours
                    logprobs_mode="processed_logprobs",  # at the sampling temperature
                    disable_log_stats=True,
                    **device,
                )
            )
            self.version = -1
            self._tickets = 0
            self._open: dict[str, tuple[int, int]] = {}  # request id: (ticket, version)
            _register(self, self._llm.engine_core.shutdown)
            self.sync(policy)
            self._try_out()

    def sync(self, policy: Policy) -> None:
        """Copy the policy's weights into vLLM and forget all cached prefixes, which are of the old ones. Refused while
        requests are in flight. Raises ValueError if vLLM has weights that the policy doesn't name."""
        if self._open:
            raise RuntimeError("sync while requests are waiting: drain completed() first")
        self._llm.collective_rpc(_load_weights, args=(policy.weights(),))
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not give up the prefixes that the old weights computed")
        self.policy = policy
        self.version += 1

    @property
    def max_length(self) -> int:
        """See ``types.Engine``."""
        return int(min(self.policy.context, self._llm.model_config.max_model_len))

    def submit(self, request: Request) -> int:
        """Queue a request; see ``types.Engine``."""
        from vllm.inputs import tokens_input

        if _live is None or _live() is not self:
            raise RuntimeError("this engine was shut down: another VLLMEngine was built since, and vLLM allows one")
        self._refuse_impossible(request)
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._llm.add_request(str(ticket), tokens_input(request.ids), self._sampling_params(request))
        self._open[str(ticket)] = (ticket, self.version)
        return ticket

    def completed(self) -> Iterator[tuple[int, Completion]]:
        """Yield (ticket, completion) as vLLM finishes them; see ``types.Engine``."""
        try:
            while self._open:
                for output in self._llm.step():
                    ticket, version = self._open.pop(output.request_id)
                    (written,) = output.outputs
                    if written.finish_reason not in ("stop", "length"):
                        raise RuntimeError(f"vLLM ended a request with {written.finish_reason!r}")
                    ids = list(written.token_ids)
                    yield ticket, Completion(ids, written.logprobs.logprobs[: len(ids)], written.finish_reason, version)
        finally:
            # if the caller stopped half-way, the rest is lost, not left half-written
            self._llm.abort_request(list(self._open))
            self._open.clear()

    def _try_out(self) -> None:
        """One token: what vLLM's kernels can't do comes out here, and what it compiles late is compiled."""
        try:
            generate(self, [Request([0], Sampling(max_completion_length=1), 0)])
        except RuntimeError as error:
            raise ValueError(f"vLLM can't run {type(self.policy.model).__name__}: {error}; use engine=torch") from error

    def _refuse_impossible(self, request: Request) -> None:
        sampling = request.sampling
        refuse_impossible(request, self.policy.context)
        total = len(request.ids) + sampling.max_completion_length
        if total > (room := self._llm.model_config.max_model_len):
            raise ValueError(
                f"one request needs {total} tokens of cache and vLLM's holds {room}: raise engine.kv_cache_gib (on "
                "CPU) or engine.gpu_memory_utilization (on a GPU)"
            )
        if sampling.temperature and not 0.01 <= sampling.temperature <= 2:
            raise ValueError(
                f"sampling.temperature is {sampling.temperature}; vLLM samples at 0 (greedy) or 0.01 to 2; "
                "use engine=torch beyond"
            )

    def _sampling_params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling: Sampling = request.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=request.seed,
            max_tokens=sampling.max_completion_length,
            stop=list(sampling.stop),
            stop_token_ids=sorted(self.policy.end_ids),
            ignore_eos=True,  # the policy's end tokens, and no others
            logprobs=0,  # the drawn token's alone
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


@torch.no_grad()
def _load_weights(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Run by vLLM's worker: what its ``reload_weights`` does, and two things that that leaves out."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = worker.get_model()
    wanted = {name for name, _ in model.named_parameters()}
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        loaded = model.load_weights((name, weight.detach()) for name, weight in weights)
        finalize_layerwise_reload(model, worker.model_config)
    # It only logs this, and the model would go on with random weights.
    if loaded is not None and (missing := wanted - loaded):
        raise ValueError(
            f"vLLM's {type(model).__name__} has weights that the policy doesn't name, such as {min(missing)}; "
            "use engine=torch"
        )
    # On CPU the head multiplies by a packed copy of its matrix. One that is tied to the embedding is not reloaded by
    # itself, and the copy would stay what it was.
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _check_installed(device: torch.device) -> None:
    """Raise OSError if vLLM can't be imported, or runs on another kind of device than the policy."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that it sees the policy's tensors
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm  # noqa: F401
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise OSError(f"vLLM is installed but can't be imported ({error}); `make vllm` installs it anew") from error
        raise OSError("vLLM is not installed: run `make vllm`, or use engine=torch") from error
    except (ImportError, RuntimeError) as error:  # such as builds of torchvision for another torch
        raise OSError(f"vLLM is installed but can't be imported ({error}); `make vllm` installs it anew") from error
    if current_platform.device_type != device.type:
        raise OSError(
            f"this vLLM is built for {current_platform.device_type or 'no device found here'} and the policy is on "
            f"{device.type}; `make vllm` installs the build that fits torch"
        )


def _close_previous() -> None:
    if _live is not None and (previous := _live()) is not None:
        previous._llm.engine_core.shutdown()


def _register(engine: VLLMEngine, shutdown: Any) -> None:
    """Remember the engine, and shut vLLM down with it: at once, not whenever the collector comes by, since that would
    take the parallel state from under the next engine."""
    global _live
    _live = weakref.ref(engine)
    weakref.finalize(engine, shutdown).atexit = False


@contextmanager
def _process_kept() -> Iterator[None]:
    """Building vLLM changes the process it is in; put back what training and other processes would feel: the random
    number generators, torch's threads (on CPU it replaces ``torch.set_num_threads`` by nothing), what child processes
    inherit, and the collector's frozen objects, which would never be freed."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    inherited = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "LOCAL_WORLD_SIZE")}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's, which only vLLM can mend
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        for name, value in inherited.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        gc.unfreeze()
