"""Conversion of GGUF: the same model comes out, once, or nothing does."""

import json
from datetime import UTC, datetime
from pathlib import Path

import gguf
import pytest
import torch
from tests.support.models import CHAT_TEMPLATE, tiny_llama
from tests.support.training import JOB, quiet_context
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ConvertConfig, Provenance
from finetuning_trainer import convert as convert_module
from finetuning_trainer.convert import convert
from finetuning_workload.artifact import require_intact, write_manifest
from finetuning_workload.errors import UserError
from finetuning_workload.models import load_tokenizer

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, model_folder: Path) -> LlamaForCausalLM:
    """Write a Llama and its tokenizer as the GGUF that llama.cpp would write, in fp32; return the model."""
    model = LlamaForCausalLM.from_pretrained(model_folder)
    config, tokenizer = model.config, load_tokenizer(model_folder)
    path.parent.mkdir(parents=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or 1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    core = tokenizer.backend_tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([core.id_to_token(number) for number in range(config.vocab_size)])
    writer.add_token_types([3 if number < 3 else 1 for number in range(config.vocab_size)])
    merges = json.loads(core.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    _add_tensors(writer, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_tensors(writer: gguf.GGUFWriter, model: LlamaForCausalLM) -> None:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    for layer, block in enumerate(model.model.layers):
        for ours, theirs in _GGUF_NAMES.items():
            weight = block.get_submodule(ours).weight.detach()
            if theirs in heads:  # llama.cpp interleaves the halves that rotate together.
                count = heads[theirs]
                weight = weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())


def config_for(folder: Path) -> ConvertConfig:
    source = folder / "source"
    manifest = write_manifest(
        source,
        source="pypi://tiny==1.0#tiny.gguf",
        resolved_revision="1.0",
        content_format="gguf",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        tool="test",
    )
    provenance = Provenance(source=manifest.source, resolved_revision="1.0", digest=manifest.digest)
    return ConvertConfig(job=JOB, source=str(source), destination=str(folder / "artifact"), provenance=provenance)


def test_a_converted_model_is_the_same_model_with_its_tokenizer_and_template(tmp_path: Path) -> None:
    original_folder = tiny_llama(tmp_path / "model")
    original = write_gguf(tmp_path / "source" / "tiny.gguf", original_folder)
    config = config_for(tmp_path)
    result = convert(config, quiet_context())
    artifact = tmp_path / "artifact"
    manifest = require_intact(artifact, digest=result.digest)
    assert (manifest.source, manifest.resolved_revision) == ("pypi://tiny==1.0#tiny.gguf", "1.0")
    assert not (tmp_path / "source").exists()
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-5, rtol=1e-4)
    tokenizer, before = load_tokenizer(artifact), load_tokenizer(original_folder)
    text = "The invoice, äöü 漢字 🙂\n  twice"
    assert tokenizer.encode(text, add_special_tokens=False) == before.encode(text, add_special_tokens=False)
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)


def test_a_complete_artifact_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "source" / "tiny.gguf", tiny_llama(tmp_path / "model"))
    config = config_for(tmp_path)
    first = convert(config, quiet_context())
    monkeypatch.setattr(convert_module, "_load", None)
    assert convert(config, quiet_context()) == first


@pytest.mark.parametrize("damage", ["not GGUF", "cut", "empty"])
def test_a_damaged_file_is_refused_and_leaves_no_artifact(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "source" / "tiny.gguf"
    write_gguf(file, tiny_llama(tmp_path / "model"))
    content = file.read_bytes()
    file.write_bytes({"not GGUF": b"<html>" + content, "cut": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(UserError, match="cannot be converted") as error:
        convert(config_for(tmp_path), quiet_context())
    assert error.value.reason is Reason.CONVERSION_FAILED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(folder)
    write_gguf(tmp_path / "source" / "tiny.gguf", folder)
    with pytest.raises(UserError, match="no finite numbers"):
        convert(config_for(tmp_path), quiet_context())
