"""A Llama of two layers with random weights from a fixed seed, and a tokenizer trained on the standard library's source.

The fixtures write one into a folder. Its text is noise, but at temperature 0 always the same noise, so that divided and undivided
runs can be compared word for word. No hub is asked; nothing but numpy and tokenizers is needed.
"""

import json
import struct
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 4096, 128, 2, 4, 2, 256
CONTEXT_TOKENS = 4096
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SEED = 7
_SOURCES = 150


def write_tiny_model(folder: Path) -> None:
    """Weights, configuration, tokenizer and chat template; 5 MB, a few seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(_config()))
    _write_safetensors(folder / "model.safetensors", _weights())


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:_SOURCES]
    tokenizer.train([str(path) for path in sources], trainer)
    return tokenizer


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }


def _weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(_SEED)

    def matrix(rows: int, columns: int, scale: float = 0.08) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    kv = KV_HEADS * HIDDEN // HEADS
    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, 1.0), "lm_head.weight": matrix(VOCABULARY, HIDDEN)}
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv), ("o", HIDDEN)):
            weights[f"{at}self_attn.{name}_proj.weight"] = matrix(rows, HIDDEN)
        weights[f"{at}mlp.gate_proj.weight"] = matrix(INNER, HIDDEN)
        weights[f"{at}mlp.up_proj.weight"] = matrix(INNER, HIDDEN)
        weights[f"{at}mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def _write_safetensors(path: Path, weights: dict[str, np.ndarray]) -> None:
    """The format: 8 bytes little-endian length, a JSON header, the tensors one behind the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in weights.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        for tensor in weights.values():
            file.write(tensor.tobytes())
