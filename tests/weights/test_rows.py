"""Rows are written inside every wrapper, either all of them or none."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from architectures import Architecture
from defemb_callbacks.weights.rows import (
    check_rows,
    embedding_weight,
    read_rows,
    read_table,
    table_layers,
    tables_of,
    write_rows,
)
from defemb_callbacks.weights.unwrapping import bare_model
from tiny import tiny_bert, wordpiece_tokenizer

IDS = torch.tensor([7, 3, 400])
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def new_rows(n: int = len(IDS), width: int = 32) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model() -> BertModel:
    return tiny_bert(wordpiece_tokenizer())


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one process."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("model_type", "name", "tables", "layers"),
    [
        ("bert", "BertForMaskedLM", ["input"], ["input"]),
        ("llama", "LlamaForCausalLM", ["input", "output"], ["input", "output"]),
        # The output table is tied to the decoder's.
        ("t5gemma", "T5GemmaForConditionalGeneration", ["input", "decoder"], ["input", "decoder", "output"]),
        # Its decoder is not a PreTrainedModel.
        ("fsmt", "FSMTForConditionalGeneration", ["input", "output"], ["input", "output"]),
    ],
)
def test_tables_with_separate_weights(model_type: str, name: str, tables: list[str], layers: list[str]):
    model = Architecture(model_type, name).shared_model()
    assert list(table_layers(model)) == layers
    assert tables_of(model) == tables
    addresses = {embedding_weight(model, table).data_ptr() for table in tables_of(model)}
    assert len(addresses) == len(tables)


def assert_written(model: nn.Module, before: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Exactly the three rows are replaced, and all others are unchanged."""
    expected = before.clone()
    expected[IDS] = new_rows().to(dtype).float()
    assert torch.equal(read_table(model), expected)


def test_writes_only_the_given_rows(model):
    before = read_table(model)
    write_rows(model, IDS, new_rows())
    assert_written(model, before)


def test_the_table_stays_the_same_trainable_leaf_parameter(model):
    weight, address = embedding_weight(model), embedding_weight(model).data_ptr()
    write_rows(model, IDS, new_rows().requires_grad_())
    assert embedding_weight(model) is weight
    assert weight.data_ptr() == address
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.grad_fn is None


def test_an_existing_optimizer_updates_the_written_rows(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    write_rows(model, IDS, new_rows())
    model(input_ids=IDS[None]).last_hidden_state[..., 0].sum().backward()
    step = embedding_weight(model).grad[IDS].clone()
    optimizer.step()
    assert step.abs().max() > 0
    torch.testing.assert_close(read_table(model)[IDS], new_rows() - step)


def test_writing_no_rows_changes_nothing(model):
    before = read_table(model)
    write_rows(model, torch.empty(0, dtype=torch.int64), torch.empty(0, 32))
    assert torch.equal(read_table(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_rows_equals_reading_the_table(model, dtype):
    model.to(dtype)
    rows = read_rows(model, IDS)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, read_table(model)[IDS])
    rows.fill_(7)
    assert not (read_table(model) == 7).any()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process")
def test_reading_rows_does_not_copy_the_table():
    """In a process of its own: the most memory held, less what was held before."""
    script = """
import torch
from pathlib import Path
from transformers import BertConfig, BertModel
from defemb_callbacks.weights.rows import read_rows

def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

sizes = dict(hidden_size=1024, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
with torch.device("meta"):
    model = BertModel(BertConfig(vocab_size=60_000, **sizes))
model.embeddings.word_embeddings.weight = torch.nn.Parameter(torch.ones(60_000, 1024))
read_rows(model, torch.arange(10))
before = held("VmHWM")
read_rows(model, torch.arange(0, 60_000, 60))
print(60_000 * 1024 * 4, held("VmHWM") - before)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    table_bytes, extra_bytes = map(int, output.split())
    assert extra_bytes < table_bytes / 8


def test_reading_returns_a_copy(model):
    table = read_table(model)
    table.zero_()
    assert read_table(model).abs().sum() > 0
    assert not table.requires_grad


def test_a_tied_output_table_changes_too_and_stays_tied():
    model = tiny_bert(wordpiece_tokenizer(), BertForMaskedLM)
    ids = torch.tensor([[6, 50, 51, 7]])
    before, logits = read_table(model), model(ids).logits
    write_rows(model, torch.tensor([300]), new_rows(1))
    output = model.get_output_embeddings().weight
    assert output is embedding_weight(model)
    assert torch.equal(output[300], new_rows(1)[0])
    # Token 300 is not in the input, so only its own logit can change.
    changed = (model(ids).logits != logits).any(dim=1)[0]
    assert changed.nonzero().flatten().tolist() == [300]
    model.tie_weights()
    assert not torch.equal(read_table(model), before)
    assert torch.equal(read_table(model)[300], new_rows(1)[0])


def test_an_untied_output_table_keeps_its_rows():
    model = tiny_bert(wordpiece_tokenizer(), BertForMaskedLM, tie_word_embeddings=False)
    output = model.get_output_embeddings().weight.clone()
    before = read_table(model)
    write_rows(model, IDS, new_rows())
    assert_written(model, before)
    assert torch.equal(model.get_output_embeddings().weight, output)


def test_rows_are_cast_to_the_dtype_of_the_table(model):
    model.to(torch.bfloat16)
    before = read_table(model)
    assert before.dtype == torch.float32
    write_rows(model, IDS, new_rows())
    assert embedding_weight(model).dtype == torch.bfloat16
    assert_written(model, before, torch.bfloat16)


def test_writes_inside_ddp(model, process_group):
    before = read_table(model)
    wrapped = DistributedDataParallel(model)
    assert embedding_weight(wrapped) is embedding_weight(model)
    write_rows(wrapped, IDS, new_rows())
    assert_written(model, before)


def test_writes_inside_data_parallel_and_torch_compile(model):
    for wrap in (nn.DataParallel, torch.compile):
        inner = tiny_bert(wordpiece_tokenizer())
        before = read_table(inner)
        wrapped = wrap(inner)
        assert bare_model(wrapped) is inner
        write_rows(wrapped, IDS, new_rows())
        assert_written(inner, before)


def test_ddp_inside_torch_compile_is_kept(model, process_group):
    """Without it, gradients would no longer be averaged over processes."""
    wrapped = DistributedDataParallel(model)
    compiled = torch.compile(wrapped)
    write_rows(compiled, IDS, new_rows())
    assert compiled._orig_mod is wrapped
    assert torch.equal(read_table(model)[IDS], new_rows())


def test_a_model_inside_fsdp1_is_refused(model, process_group):
    """FSDP1 flattens all weights into one parameter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by torch
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match=r"wrapped by FSDP1.*Use FSDP2: fsdp_config=\{\"version\": 2\}"):
        write_rows(wrapped, IDS, new_rows())


def with_value(row: int, value: float) -> Tensor:
    rows = new_rows()
    rows[row, 4] = value
    return rows


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (IDS, with_value(1, float("nan")), r"1 new rows contain NaN or infinity, the first one for token 3\."),
        (IDS, with_value(2, float("-inf")), r"1 new rows contain NaN or infinity, the first one for token 400\."),
        (IDS, torch.full((3, 32), float("nan")), r"3 new rows contain NaN .* token 7\."),
        (torch.tensor([7, 3, 476]), new_rows(), r"ids from 3 to 476 do not fit a table of 476 rows.*own tokenizer"),
        (torch.tensor([7, -1, 3]), new_rows(), r"ids from -1 to 7 do not fit a table of 476 rows"),
        (torch.tensor([7, 3, 7]), new_rows(), r"Token ids must be unique, but 7 occurs more than once"),
        (IDS.int(), new_rows(), r"must be a 1-D int64 tensor, got shape \(3,\) and dtype torch.int32"),
        (IDS[None], new_rows(), r"must be a 1-D int64 tensor, got shape \(1, 3\) and dtype torch.int64"),
        (IDS, new_rows(3, 31), r"shape \(3, 31\), but this model needs \(3, 32\)\. .*for this model"),
        (IDS, new_rows(2), r"shape \(2, 32\), but this model needs \(3, 32\)"),
        (IDS, new_rows()[0], r"shape \(32,\), but this model needs"),
    ],
)
def test_invalid_rows_are_refused_and_nothing_is_written(model, ids, rows, message):
    before = read_table(model)
    with pytest.raises(ValueError, match=message):
        write_rows(model, ids, rows)
    assert torch.equal(read_table(model), before)


def test_values_that_overflow_the_dtype_of_the_table_are_refused(model):
    model.to(torch.float16)
    before = read_table(model)
    with pytest.raises(ValueError, match="1 new rows contain NaN or infinity, the first one for token 3"):
        write_rows(model, IDS, with_value(1, 1e5))
    assert torch.equal(read_table(model), before)


def test_rows_can_be_checked_without_a_model():
    check_rows(IDS, new_rows(), size=401, width=32)
    with pytest.raises(ValueError, match="do not fit a table of 400 rows"):
        check_rows(IDS, new_rows(), size=400, width=32)


def test_refuses_a_quantized_table(model):
    quantized = model.get_input_embeddings().weight.to(torch.int8)
    model.get_input_embeddings().weight = nn.Parameter(quantized, requires_grad=False)
    with pytest.raises(TypeError, match=r"quantized \(torch.int8\) and cannot be written.*exclude them"):
        write_rows(model, IDS, new_rows())
    assert torch.equal(model.get_input_embeddings().weight, quantized)


def test_refuses_a_table_on_the_meta_device():
    with torch.device("meta"):
        model = tiny_bert(wordpiece_tokenizer())
    with pytest.raises(ValueError, match="meta device and hold no data. Load the weights first"):  # noqa: RUF043
        write_rows(model, IDS, new_rows())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 3), r"Linear has no token embeddings to rebuild: .* gives NoneType"),
        (lambda: ViTModel(ViTConfig(**SMALL)), r"ViTModel has no token embeddings .* gives ViTPatchEmbeddings"),
        (lambda: Wav2Vec2Model(Wav2Vec2Config(**SMALL)), r"Wav2Vec2Model has no token embeddings .* gives NoneType"),
    ],
)
def test_refuses_a_model_without_token_embeddings(make, message):
    with pytest.raises(TypeError, match=message):
        embedding_weight(make())


def test_a_joint_model_is_refused_with_its_text_model():
    config = CLIPConfig(
        text_config={**SMALL, "vocab_size": 9}, vision_config={**SMALL, "image_size": 16, "patch_size": 8}
    )
    model = CLIPModel(config)
    cure, text_model = r"Pass the part.*: `model\.text_model`\.$", model.text_model
    if not isinstance(text_model, PreTrainedModel):  # transformers 5.0
        cure, text_model = (
            r"Load.*, with `CLIPTextModel\.from_pretrained\(\.\.\.\)`\.$",
            CLIPTextModel(config.text_config),
        )
    with pytest.raises(TypeError, match=rf"CLIPModel has no token embeddings.*{cure}"):
        embedding_weight(model)
    assert embedding_weight(text_model).shape == (9, 16)


def test_a_text_model_that_is_not_a_model_of_its_own_is_named_by_its_class():
    case = Architecture("owlvit", "OwlViTModel")
    with pytest.raises(
        TypeError, match=r"Load its text model instead, with `OwlViTTextModel\.from_pretrained\(\.\.\.\)`"
    ):
        embedding_weight(case.model())


def test_a_part_that_reads_codes_of_sounds_is_not_recommended():
    """The table of CSM's depth decoder has several codebooks; that of its text is not in a part."""
    case = Architecture("csm", "CsmForConditionalGeneration")
    with pytest.raises(TypeError, match=r"Pass a model that reads tokens through one embedding table\.$"):
        embedding_weight(case.model())


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: nn.Linear(3, 3), r"Pass the transformers model itself\.$"),
        (lambda: ViTModel(ViTConfig(**SMALL)), r"Pass a model that reads tokens through one embedding table\.$"),
    ],
)
def test_a_model_without_tokens_is_refused_with_the_cure(make, cure):
    with pytest.raises(TypeError, match=cure):
        embedding_weight(make())
