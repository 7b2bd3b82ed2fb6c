"""What many commands take: where the home is, which model, which data."""

from dataclasses import dataclass

from evergreen.options import option


@dataclass
class CommonSettings:
    home: str = option("", "where state lives (else $EVERGREEN_HOME, else ./.evergreen)")
    json: bool = option(False, "the last line of stdout is one JSON document")


@dataclass
class ModelSettings(CommonSettings):
    model: str = option(
        "", "nano, a folder, a hub name, or an adapter's output folder", ("model_name_or_path", "model_id")
    )
    adapters: list[str] = option([], "LoRA adapters over the model (PEFT folders)", ("adapter_name_or_path", "adapter"))
    model_type: str = option("", "accepted for habit's sake; must agree with the model's own type")
    template: str = option(
        "", "chat template for a base without one: chatml, qwen or a .jinja file; 'auto' is the model's own"
    )
    system: str | None = option(
        None, "system prompt (default: the adapter's, else the template's own)", ("default_system",)
    )
    torch_dtype: str = option(
        "auto",
        "what to compute in; auto measures what this device is fast at",
        ("dtype",),
        ("auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"),
    )
    device: str = option("", "cpu or cuda (default: cuda where there is one)")
    seed: int = option(42, "for every random choice", ("data_seed",), at_least=0, at_most=2**32 - 1)
    trust_remote_code: bool = option(False, "accepted for habit's sake: model code comes from transformers alone")
    flash_attn: str = option("auto", "accepted for habit's sake", ("attn_impl", "attn_implementation"))


@dataclass
class DataSettings:
    dataset: list[str] = option(
        [], "sources: NAME[#N] in dataset_info.json, a folder dataset/NAME, a path or a hub name", ("train_dataset",)
    )
    val_dataset: list[str] = option([], "sources to evaluate the loss on while training", ("eval_dataset",))
    split_dataset_ratio: float = option(
        0.0, "share of the training data held out when no val_dataset is given", ("val_size",), at_least=0, at_most=0.99
    )
    dataset_dir: str = option("", "folder with dataset_info.json (default: ./data, then .)")
    interleave_prob: list[float] = option([], "mixing probabilities, one per source", ("interleave_probs",), at_least=0)
    stopping_strategy: str = option(
        "first_exhausted",
        "with interleave_prob: stop when the first or when every source is used up",
        (),
        ("first_exhausted", "all_exhausted"),
    )
    max_samples: int | None = option(None, "at most so many rows of each source", (), at_least=1)
    streaming: bool = option(False, "read rows as they are needed instead of holding the set in memory")
    on_bad_row: str = option("error", "what a row that cannot be used does", (), ("error", "skip"))
    model_name: str = option("", "fills {{name}} and {{NAME}} in identity data")
    model_author: str = option("", "fills {{author}} and {{AUTHOR}} in identity data")
