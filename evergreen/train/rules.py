"""What a training run's flags must be: nothing missing, nothing that contradicts itself, our own spellings."""

import importlib.util
from typing import Any

from evergreen.records import BadInput
from evergreen.settings import SftSettings


def check_settings(settings: SftSettings) -> None:
    """What is missing or contradicts itself, before anything is read; other frameworks' spellings become ours."""
    _respell(settings)
    has_evaluation = settings.val_dataset or settings.split_dataset_ratio
    has_old_data = settings.replay_samples or settings.general_replay
    rules = [
        (not (settings.model or settings.adapters or settings.prev_model),
         "--model is missing (nano, a folder or a hub name)"),
        (not settings.do_train, "--do_train false: sft trains; see evergreen eval and evergreen infer"),
        (not settings.dataset, "--dataset is missing (a file, a folder, or a name in dataset_info.json)"),
        (settings.eval_strategy in ("steps", "epoch") and not has_evaluation,
         f"--eval_strategy {settings.eval_strategy} needs data to evaluate: give --val_dataset or "
         "--split_dataset_ratio 0.05"),
        (settings.bf16 and settings.fp16, "--bf16 and --fp16 contradict each other"),
        (settings.quantization_bit and settings.train_type != "qlora",
         "--quantization_bit is for --train_type qlora"),
        (settings.quantization_bit not in (None, 4),
         f"--quantization_bit {settings.quantization_bit}: qlora has 4-bit bases"),
        (settings.streaming and settings.max_steps < 1,
         "--streaming true needs --max_steps, since the number of rows is not known"),
        (settings.streaming and settings.split_dataset_ratio,
         "--split_dataset_ratio cannot split a stream: give --val_dataset"),
        (settings.replay_samples and not settings.prev_model,
         "--replay_samples needs the earlier run whose data it replays: give --prev_model"),
        ((settings.replay_samples or settings.general_replay) and settings.streaming,
         "--replay_samples and --general_replay cannot be mixed into a stream"),
        (settings.replay_answers == "onpolicy" and not settings.replay_samples,
         "--replay_answers onpolicy needs old prompts to answer: give --replay_samples"),
        (settings.regularization != "l2sp" and not settings.regularization_alpha,
         f"--regularization {settings.regularization} needs its strength: give --regularization_alpha"),
        (settings.regularization != "l2sp" and settings.regularization_alpha and not has_old_data,
         f"--regularization {settings.regularization} measures on old data: give --replay_samples or --general_replay"),
        (settings.use_dora and settings.regularization == "l2sp" and settings.regularization_alpha,
         "--regularization l2sp does not hold for DoRA, whose weight is normalised: use plain LoRA"),
        (settings.use_dora and settings.merge_chain,
         "--merge_chain does not hold for DoRA, whose change is no product of two matrices: use plain LoRA"),
        (settings.orthogonal_lambda and settings.chain != "stack",
         f"--orthogonal_lambda keeps a new adapter away from those below it, and --chain {settings.chain} leaves none "
         "below: give --chain stack"),
        (settings.unfreeze and not has_old_data,
         "--unfreeze auto compares new data with old: give --replay_samples or --general_replay"),
        (settings.unfreeze and settings.trainable_layers not in ("", "all"),
         "--unfreeze auto chooses the layers that learn, and --trainable_layers names them: give one of the two"),
        (settings.train_type in ("full", "freeze") and (settings.chain != "continue" or settings.merge_chain),
         "--chain and --merge_chain are for lora and qlora"),
        ((settings.chain != "continue" or settings.orthogonal_lambda) and not settings.prev_model,
         "--chain and --orthogonal_lambda need the earlier run to build on: give --prev_model"),
        (settings.modules_to_save and settings.train_type in ("full", "freeze"),
         "--modules_to_save is for lora and qlora"),
        (settings.use_dora and settings.train_type in ("full", "freeze"), "--use_dora is for lora and qlora"),
    ]  # fmt: skip
    problems = [problem for is_broken, problem in rules if is_broken]
    if problems:
        raise BadInput("; ".join(problems))


def check_model(settings: SftSettings, config: Any) -> None:
    """What a run on a model of this config and on this machine cannot be, before its weights are loaded."""
    from transformers.training_args import OptimizerNames

    from evergreen.model.load import check_model_type, default_device, resolve_dtype
    from evergreen.train.tune import learning_layers

    check_model_type(settings.model_type, config)
    if settings.optim not in list(OptimizerNames):
        raise BadInput(f"--optim {settings.optim}: no such optimizer; known are {', '.join(OptimizerNames)}")
    learning_layers(settings, config)
    device = settings.device or default_device()
    if device == "cpu" and str(resolve_dtype(settings.torch_dtype, device)) == "torch.float16":
        raise BadInput("--torch_dtype float16 needs a GPU: use float32 or bfloat16 on a CPU")
    if settings.train_type == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("--train_type qlora needs bitsandbytes: pip install 'evergreen-lm[qlora]'")


def _respell(settings: SftSettings) -> None:
    """LLaMA-Factory's `lora_target: all` and `q_proj,v_proj`, its qlora (lora with quantization_bit), bf16 and fp16."""
    if settings.bf16 or settings.fp16:
        settings.torch_dtype = "bfloat16" if settings.bf16 else "float16"
    if settings.quantization_bit and settings.train_type == "lora":
        settings.train_type = "qlora"
    for flag in ("target_modules", "modules_to_save"):
        names = [name.strip() for text in getattr(settings, flag) for name in text.split(",")]
        setattr(settings, flag, ["all-linear" if name == "all" else name for name in names if name])
    settings.target_modules = settings.target_modules or ["all-linear"]
    if settings.unfreeze and settings.train_type == "freeze":  # not the last two: all may be chosen
        settings.trainable_layers = "all"
