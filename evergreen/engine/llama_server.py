"""llama.cpp's HTTP server out of the wheel `xllamacpp`, run by the python of its own environment: no evergreen here.

python llama_server.py '{"model": "m.gguf", "adapters": ["a.gguf"], "port": 8081, "num_slots": 8, ...}'
"""

import json
import sys
import threading


def main(given: dict) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = given["model"]
    params.hostnames, params.port = ["127.0.0.1"], given["port"]
    params.api_keys = [given["api_key"]]
    params.n_ctx, params.n_parallel = given["num_slots"] * given["max_context_tokens"], given["num_slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["num_threads"]
    params.cache_ram_mib = 0
    if given["is_exact"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    # scale 0: a request without the list would otherwise be answered by the sum of all adapters
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in given["adapters"]]
    params.lora_init_without_apply = True
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
