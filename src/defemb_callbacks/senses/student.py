"""Students: the first layers of a teacher, or a smaller model with the teacher's pooler and head."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPoolingAndCrossAttentions

from defemb_callbacks.reconstruction.backbone import backbone_of
from defemb_callbacks.weights.rows import embedding_weight

__all__ = ["SenseStudent", "SenseStudentConfig", "first_layers", "freeze_head", "parameter_counts"]


def first_layers(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Copy the first layers of a teacher, with its embeddings and head; the class is the teacher's.

    Args:
        teacher: An encoder or decoder.
        layers: Number of layers to keep.

    Raises:
        ValueError: If `layers` is less than 1 or more than the teacher has.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=3, num_attention_heads=1)
        >>> first_layers(BertForSequenceClassification(config), 2).config.num_hidden_layers
        2
    """
    config = copy.deepcopy(teacher.config)
    text_config = config.get_text_config()
    if not 1 <= layers <= text_config.num_hidden_layers:
        raise ValueError(f"`layers` must be between 1 and {text_config.num_hidden_layers}, got {layers}.")
    # Per-layer settings, such as the type of attention.
    if isinstance(layer_types := getattr(text_config, "layer_types", None), list):
        text_config.layer_types = layer_types[:layers]
    text_config.num_hidden_layers = layers
    student = type(teacher)(config)
    student.to(teacher.device)  # type: ignore[arg-type]
    # Keep each dtype: models in half precision keep some tensors, such as rotary frequencies, in float32.
    for name, weight in student.named_parameters():
        weight.data = weight.data.to(teacher.get_parameter(name).dtype)
    for name, _ in list(student.named_buffers()):
        path, _, last = name.rpartition(".")
        setattr(student.get_submodule(path), last, teacher.get_buffer(name).clone())
    wanted = student.state_dict().keys()
    student.load_state_dict({name: tensor for name, tensor in teacher.state_dict().items() if name in wanted})
    return student.train(teacher.training)


class SenseStudentConfig(PretrainedConfig):
    """Config of a `SenseStudent`: the configs of its teacher and of its backbone, as dicts."""

    model_type = "sense_student"

    def __init__(
        self, teacher: dict[str, Any] | None = None, backbone: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.teacher, self.backbone = teacher or {}, backbone or {}
        super().__init__(**kwargs)


class SenseStudent(PreTrainedModel):
    """A smaller model, a linear projection to the teacher's width, and the teacher's pooler and head.

    Create one with `SenseStudent.of`; save and load it as any model of transformers, with this class.
    """

    config_class = SenseStudentConfig
    base_model_prefix = "projected"

    def __init__(self, config: SenseStudentConfig) -> None:
        super().__init__(config)
        teacher_config = AutoConfig.for_model(**config.teacher)
        shallow = copy.deepcopy(teacher_config)
        shallow.get_text_config().num_hidden_layers = 1  # its layers are discarded below
        # The teacher's embeddings are discarded with its backbone, so a head tied to them keeps a copy.
        shallow.tie_word_embeddings = shallow.get_text_config().tie_word_embeddings = False
        self.head = getattr(transformers, config.teacher["architectures"][0])(shallow)
        backbone = AutoModel.from_config(AutoConfig.for_model(**config.backbone))
        prefix = self.head.base_model_prefix
        pooler = getattr(getattr(self.head, prefix), "pooler", None)
        setattr(self.head, prefix, _ProjectedBackbone(teacher_config, backbone, pooler))
        self.post_init()

    @classmethod
    def of(cls, teacher: PreTrainedModel, backbone: PreTrainedModel) -> SenseStudent:
        """Create a student with the weights of a smaller model and copies of the teacher's pooler and head.

        Args:
            teacher: An encoder or decoder with a head.
            backbone: A model without a head, with the same vocabulary.

        Raises:
            ValueError: If the vocabulary sizes differ, or the teacher has no head.
        """
        sizes = len(embedding_weight(teacher)), len(embedding_weight(backbone))
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`backbone` must have as many tokens as the teacher, {sizes[0]}, got {sizes[1]}. "
                "Pass a model with the same tokenizer."
            )
        if backbone_of(teacher) is teacher:
            raise ValueError(f"{type(teacher).__name__} has no head. Pass a teacher with a head, or use first_layers.")
        settings = teacher.config.to_dict() | {"architectures": [type(teacher).__name__]}
        width = teacher.config.get_text_config().hidden_size
        config = SenseStudentConfig(settings, backbone.config.to_dict(), hidden_size=width, vocab_size=sizes[0])
        for name in ("num_labels", "id2label", "label2id", "problem_type", "pad_token_id"):
            setattr(config, name, getattr(teacher.config, name))
        student = cls(config)
        student.projected.encoder.backbone.load_state_dict(backbone.state_dict())
        prefix = f"{teacher.base_model_prefix}."
        kept = {
            name: tensor
            for name, tensor in teacher.state_dict().items()
            if not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")
        }
        student.head.load_state_dict(kept, strict=False)
        student.to(teacher.device)  # type: ignore[arg-type]
        return student

    @property
    def projected(self) -> _ProjectedBackbone:
        """The backbone, projected to the teacher's width."""
        found: _ProjectedBackbone = getattr(self.head, self.head.base_model_prefix)
        return found

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the student's backbone."""
        return self.projected.encoder.backbone.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,  # named: the Trainer drops columns that are not in the signature
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Output of the teacher's head, with its loss if `labels` is given.

        `token_type_ids` are ignored if the backbone does not use them.
        """
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        return self.head(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)


class _ProjectedEncoder(nn.Module):
    def __init__(self, backbone: PreTrainedModel, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(backbone.config.get_text_config().hidden_size, width)
        self._uses_token_types = "token_type_ids" in inspect.signature(backbone.forward).parameters

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> BaseModelOutput:
        types = {"token_type_ids": token_type_ids} if self._uses_token_types else {}
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types)
        return BaseModelOutput(last_hidden_state=self.projection(output.last_hidden_state))


class _ProjectedBackbone(nn.Module):
    """Stands in for the teacher's backbone; `with_senses` accesses its `encoder`, `pooler` and `config`."""

    def __init__(self, config: PretrainedConfig, backbone: PreTrainedModel, pooler: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        self.encoder = _ProjectedEncoder(backbone, config.get_text_config().hidden_size)
        self.pooler = pooler

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        pooled = None if self.pooler is None else self.pooler(states)
        # Heads read fields of their own output class, such as a cache. This class has all of them, set to None.
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states, pooler_output=pooled)


def freeze_head(student: PreTrainedModel) -> None:
    """Freeze the pooler and the head of a student, which are the teacher's.

    A head that is tied to the input embeddings is part of the backbone and is not frozen.
    """
    backbone = {id(weight) for name, weight in backbone_of(student).named_parameters() if "pooler" not in name}
    for weight in student.parameters():
        if id(weight) not in backbone:
            weight.requires_grad_(False)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters of a model: `"all"`, and `"layers"`, those outside the embedding table."""
    number = sum(weight.numel() for weight in model.parameters())
    return {"all": number, "layers": number - embedding_weight(model).numel()}
