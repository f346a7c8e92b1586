"""The trainer `sft`: a LoRA by supervised fine-tuning with TRL."""
