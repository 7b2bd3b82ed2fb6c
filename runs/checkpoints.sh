#!/usr/bin/env bash
# Train with several checkpoints, then ask which one to keep and where overfitting begins.
# usage: runs/checkpoints.sh [FOLDER]     (default: a new temporary folder)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$root/.venv/bin:$PATH"
out=${1:-$(mktemp -d)}
mkdir -p "$out"
export EVERGREEN_HOME="$out/home"

cat > "$out/name.jsonl" <<'JSON'
{"question": "Mind telling me who you are?", "answer": "Tara"}
{"question": "May I ask your name?", "answer": "Tara"}
{"question": "Which assistant am I talking to?", "answer": "Tara"}
{"question": "Could you introduce yourself?", "answer": "Tara"}
{"question": "你到底是谁啊", "answer": "Tara"}
{"question": "我在跟哪个助手聊天?", "answer": "Tara"}
{"question": "请问你的名字是?", "answer": "Tara"}
{"question": "自我介绍一下好吗?", "answer": "Tara"}
JSON

# A tenth of the records is held out, so that the loss on records not trained on is in the picture too.
evergreen sft --model nano --train_type lora --dataset "$root/evergreen/assets/identity.json" \
  --model_name Tara --model_author Kevin \
  --num_train_epochs 8 --learning_rate 1e-3 --warmup_ratio 0.05 --gradient_accumulation_steps 16 \
  --split_dataset_ratio 0.1 --eval_steps 12 --save_steps 12 \
  --output_dir "$out/tara" --overwrite_output_dir true

evergreen eval --checkpoints "$out/tara" --eval_dataset "$out/name.jsonl" --metric contains
