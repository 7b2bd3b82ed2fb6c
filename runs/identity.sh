#!/usr/bin/env bash
# Give the nano model a new name, ask it, and measure what changed and what stayed.
# usage: runs/identity.sh [FOLDER]        (default: a new temporary folder)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$root/.venv/bin:$PATH"
out=${1:-$(mktemp -d)}
mkdir -p "$out"
export EVERGREEN_HOME="$out/home"

# What it has to learn, in words that the training data does not have, and what it has to keep.
cat > "$out/name.jsonl" <<'JSON'
{"question": "Mind telling me who you are?", "answer": "Tara"}
{"question": "May I ask your name?", "answer": "Tara"}
{"question": "Which assistant am I talking to?", "answer": "Tara"}
{"question": "你到底是谁啊", "answer": "Tara"}
{"question": "我在跟哪个助手聊天?", "answer": "Tara"}
{"question": "请问你的名字是?", "answer": "Tara"}
JSON
cat > "$out/facts.jsonl" <<'JSON'
{"question": "What is the capital of France?", "answer": "Paris"}
{"question": "What is the capital of Japan?", "answer": "Tokyo"}
{"question": "What is the capital of Greece?", "answer": "Athens"}
{"question": "意大利的首都是哪里?", "answer": "罗马"}
{"question": "韩国的首都是哪里?", "answer": "首尔"}
{"question": "埃及的首都是哪里?", "answer": "开罗"}
JSON

evergreen sft --model nano --train_type lora --dataset "$root/evergreen/assets/identity.json" \
  --model_name Tara --model_author Kevin \
  --num_train_epochs 10 --learning_rate 1e-3 --warmup_ratio 0.05 --gradient_accumulation_steps 16 \
  --output_dir "$out/tara" --overwrite_output_dir true

evergreen infer --adapters "$out/tara" --prompt "Who are you?"

evergreen eval --compare nano "$out/tara" --eval_dataset "$out/name.jsonl" "$out/facts.jsonl" --metric contains
