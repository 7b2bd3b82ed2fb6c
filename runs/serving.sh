#!/usr/bin/env bash
# Serve nano and an adapter beside it, ask both through the API, rate an answer, and look at what was counted.
# usage: runs/serving.sh [FOLDER]         (default: a new temporary folder)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$root/.venv/bin:$PATH"
out=${1:-$(mktemp -d)}
mkdir -p "$out"
export EVERGREEN_HOME="$out/home"

evergreen sft --model nano --train_type lora --dataset "$root/evergreen/assets/identity.json" \
  --model_name Tara --model_author Kevin --num_train_epochs 10 --learning_rate 1e-3 --warmup_ratio 0.05 \
  --gradient_accumulation_steps 16 --output_dir "$out/tara" --overwrite_output_dir true

# A free port; the line with the address comes when the first request would be answered.
evergreen serve --model nano --enable-lora --lora-modules tara="$out/tara" --port 0 > "$out/served.txt" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until grep -q "is served at" "$out/served.txt"; do
  kill -0 $server
  sleep 0.5
done
url=$(grep -o 'http://[0-9.:]*' "$out/served.txt" | head -1)
echo "$url"

ask() { curl -sS --fail-with-body "$url/$1" -H 'Content-Type: application/json' -d "$2"; echo; }

for model in nano tara; do
  ask v1/chat/completions "{\"model\": \"$model\", \"temperature\": 0, \"messages\": [{\"role\": \"user\", \"content\": \"Who are you?\"}]}" |
    tee "$out/$model.json"
done
ask generate '{"prompt": "<|im_start|>user\n你是谁?<|im_end|>", "lora_request": {"lora_name": "tara"}, "temperature": 0}'

# How likely is a text? Nothing is generated.
ask v1/completions '{"prompt": "The capital of France", "max_tokens": 0, "echo": true, "logprobs": 1}'

id=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["id"])' "$out/tara.json")
ask v1/feedback '{"response_id": "'"$id"'", "thumb": "up"}'
curl -sS "$url/metrics" | grep -E '^evergreen_(requests_total|generated_tokens_total)'

kill -TERM $server # running answers end first
wait $server
