"""Reading artifacts from their headers: safetensors, LoRA folders, base models, the Hub."""
